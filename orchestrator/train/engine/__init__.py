"""Engines: weights, gradients and optimizer state of one rank. `make.py` chooses one."""
