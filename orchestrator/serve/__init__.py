"""An export becomes an OpenAI-compatible service on Ray Serve."""
