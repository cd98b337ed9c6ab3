"""Making tokens: what an engine is, and ours. Knows nothing of HTTP and of Ray."""
