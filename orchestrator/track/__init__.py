"""Metrics, progress and experiment tracking."""
