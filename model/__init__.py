"""Networks and their configuration; knows nothing of Ray, W&B, jobs or the orchestrator."""
