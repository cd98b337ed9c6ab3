"""Faults on a live run, and whether it kept its promises: `slipway chaos`."""
