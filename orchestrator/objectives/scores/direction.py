"""Which way a metric gets better, for the choice of the best checkpoint. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Direction = Literal["max", "min"]

DIRECTIONS: Mapping[str, Direction] = {
    "loss": "min",
    "masked_loss": "min",
    "next_sentence_loss": "min",
    "perplexity": "min",
    "bits_per_byte": "min",
    "accuracy": "max",
    "exact_match": "max",
    "f1": "max",
    "macro_f1": "max",
    "masked_accuracy": "max",
    "next_sentence_accuracy": "max",
    "precision": "max",
    "recall": "max",
    "reward_accuracy": "max",
    "reward_margin": "max",
    "token_accuracy": "max",
}
"""Every metric that a score can have."""


def direction_of(metric: str) -> Direction:
    """Whether more or less of it is better.

    Raises:
        ValueError: no score has a metric of this name.
    """
    if metric not in DIRECTIONS:
        raise ValueError(f"there is no metric {metric!r}; there are {', '.join(sorted(DIRECTIONS))}")
    return DIRECTIONS[metric]
