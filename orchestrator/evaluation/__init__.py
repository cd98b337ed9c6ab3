"""Scores of what was trained, or imported, on a split: `slipway evaluate`."""
