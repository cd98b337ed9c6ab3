"""Versions of a model on a live service: whether a new one may come, stay, or must go."""
