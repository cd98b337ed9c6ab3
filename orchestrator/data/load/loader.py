"""Shards to batches: memory-mapped, the same global order at any world size.

Sample `i` of length T is `tokens[i*T : i*T + T + 1]` of the flat stream, so no token is lost to padding. The T + 1
ids give T inputs and T targets.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from orchestrator.data.load.order import SampleOrder
from orchestrator.data.shards import open_shard
from orchestrator.plan import require_one_sample

Ids = npt.NDArray[np.int64]


class TokenStream:
    """The flat stream of a split over all its shards."""

    def __init__(self, shard_paths: list[Path]) -> None:
        self._shards = [open_shard(path).tokens for path in shard_paths]
        self._starts = np.concatenate([[0], np.cumsum([len(s) for s in self._shards], dtype=np.int64)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read_into(self, row: Ids, start: int) -> None:
        """Copy the tokens from `start` on until `row` is full, over borders of shards."""
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        filled = 0
        while filled < len(row):
            offset = start + filled - int(self._starts[shard])
            piece = self._shards[shard][offset : offset + len(row) - filled]
            row[filled : filled + len(piece)] = piece
            filled += len(piece)
            shard += 1


class Samples:
    """A split as samples of T + 1 token ids."""

    def __init__(self, stream: TokenStream, context: int) -> None:
        self._stream = stream
        self.context = context
        self.count = max(0, len(stream) - 1) // context

    def read(self, indices: Ids) -> Ids:
        """Samples by index: [B] -> [B, T + 1]."""
        ids = np.empty((len(indices), self.context + 1), dtype=np.int64)
        for row, index in zip(ids, indices, strict=True):
            self._stream.read_into(row, int(index) * self.context)
        return ids

    def short(self) -> Ids | None:
        """The whole stream as one sample [1, N], where it is too short for a full one; None where it is not."""
        if self.count or len(self._stream) < 2:
            return None
        ids = np.empty((1, len(self._stream)), dtype=np.int64)
        self._stream.read_into(ids[0], 0)
        return ids


class TrainLoader:
    """The samples of each step, in the order that the seed gives.

    Raises:
        JobError: the split is shorter than one sample.
    """

    def __init__(self, stream: TokenStream, *, context: int, samples_per_step: int, seed: int) -> None:
        self._samples = Samples(stream, context)
        require_one_sample(context, len(stream))
        self._order = SampleOrder(self._samples.count, seed)
        self._samples_per_step = samples_per_step
        self.context = context

    @property
    def num_samples(self) -> int:
        """Samples in an epoch."""
        return self._samples.count

    def read(self, step: int, first: int, last: int) -> Ids:
        """Samples [first, last) of step 1, 2, ...: [B, T + 1]; one integer is all that a resume needs."""
        positions = np.arange(first, last, dtype=np.int64) + (step - 1) * self._samples_per_step
        return self._samples.read(self._order.at(positions))
