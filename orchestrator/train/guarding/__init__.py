"""What watches a training: its numbers, its replicas, its progress."""
