"""Checkpoints beside the training."""
