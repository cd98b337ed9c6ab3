"""Batches of rows of nearly equal length, for labelled data: little padding, another order each epoch. Pure.

Rows are sorted by length and cut into windows of a few batches; an epoch permutes the rows of each window, cuts the
sequence into batches, and permutes the batches. Any batch is found in O(batch) by its number; the order is a function
of (seed, epoch), never of the world size. Every row comes exactly once an epoch; where rows do not fill the last batch,
one batch of the epoch is short.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from orchestrator.data.load.keyed import derive
from orchestrator.data.load.order import Indices, SampleOrder, permute

_PADDING = 0.04
"""What windows may cost, as a share of all tokens: beside what the batches themselves cost, under 5 % together."""


class LengthBuckets:
    """Batches 0, 1, 2, ... of rows, without end.

    Args:
        lengths: tokens of each row, [rows], at least one row.
        batch_rows: rows of a batch, over all ranks.
        seed: of the orders.
    """

    def __init__(self, lengths: npt.ArrayLike, *, batch_rows: int, seed: int) -> None:
        self._lengths = np.asarray(lengths, dtype=np.int64)
        self._by_length = np.argsort(self._lengths, kind="stable")
        self._batch_rows = batch_rows
        self.batches = -(-len(self._lengths) // batch_rows)
        """Batches of an epoch."""
        self._window = _window(self._lengths[self._by_length], batch_rows)
        self._order = SampleOrder(self.batches, derive(seed, "batches"))
        self._seed = derive(seed, "rows")

    def batch(self, number: int) -> Indices:
        """The rows of a batch of the endless sequence, in no order of length."""
        epoch = number // self.batches
        which = int(self._order.at(np.array([number]))[0])
        places = np.arange(which * self._batch_rows, min((which + 1) * self._batch_rows, len(self._lengths)))
        window = int(places[0]) // self._window
        first = window * self._window
        size = min(self._window, len(self._lengths) - first)
        windows = -(-len(self._lengths) // self._window)
        return self._by_length[first + permute(places - first, size, self._seed, epoch * windows + window)]

    def padding(self, epoch: int) -> float:
        """Share of an epoch's positions that hold no token, each batch as long as its longest row."""
        numbers = range(epoch * self.batches, (epoch + 1) * self.batches)
        return padding(self._lengths, [self.batch(number) for number in numbers])


def padding(lengths: Indices, batches: list[Indices]) -> float:
    """Share of positions that hold no token, where each batch is as long as its longest row."""
    positions = sum(len(rows) * int(lengths[rows].max()) for rows in batches)
    return 1.0 - sum(int(lengths[rows].sum()) for rows in batches) / positions


def _window(rising: Indices, batch_rows: int) -> int:
    """Rows of the widest windows, in doublings of a batch, that keep padding low even if each has its longest row."""
    widest = batch_rows
    while widest < len(rising):
        edges = np.arange(0, len(rising), widest * 2)
        sizes = np.diff(np.append(edges, len(rising)))
        longest = rising[edges + sizes - 1]
        if 1.0 - rising.sum() / (sizes * longest).sum() > _PADDING:
            break
        widest *= 2
    return widest
