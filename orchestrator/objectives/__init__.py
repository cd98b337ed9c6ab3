"""What a model learns, and how its predictions are scored."""
