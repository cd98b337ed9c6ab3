"""The HTTP API: requests and answers as data, and the routes. Knows nothing of Ray."""
