"""Text to Arrow shards, and shards to batches."""
