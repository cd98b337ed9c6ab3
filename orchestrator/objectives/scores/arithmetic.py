"""Sums that do not depend on who added which rows, and precision, recall and F1 of counts. Pure."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Series:
    """Numbers kept until the end: rounded once, their sum is the same for any number of ranks, and in any order."""

    def __init__(self) -> None:
        self._parts: list[Floats] = []

    def add(self, values: npt.ArrayLike) -> None:
        """One number or an array of any shape."""
        self._parts.append(np.array(values, dtype=np.float64).reshape(-1))

    def values(self) -> Floats:
        """All numbers [N]."""
        return np.concatenate([np.zeros(0), *self._parts])

    def sum(self) -> float:
        """Correctly rounded; NaN or infinite if a number is."""
        values = self.values()
        return math.fsum(values) if np.isfinite(values).all() else float(values.sum())


def precision_recall_f1(correct_C: Ints, predicted_C: Ints, truth_C: Ints) -> tuple[Floats, Floats, Floats]:
    """Each [C], from the counts of C classes: what is right, what was predicted, what is true. 0 for 0 / 0."""
    return _share(correct_C, predicted_C), _share(correct_C, truth_C), _share(2 * correct_C, predicted_C + truth_C)


def _share(part_C: Ints, whole_C: Ints) -> Floats:
    return np.divide(part_C, whole_C, out=np.zeros(part_C.shape), where=whole_C > 0)
