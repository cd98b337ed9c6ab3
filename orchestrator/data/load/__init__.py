"""Shards to batches: which samples a step has, in O(1), the same on any number of workers."""
