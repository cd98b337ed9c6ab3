"""Labelled rows as samples: one table over all shards, batches of nearly equal length, a split in order for scores.

A row that is longer than the model takes is several pieces; a piece is a sample. N pieces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from orchestrator.data.labelled.shards import open_rows
from orchestrator.data.load.buckets import LengthBuckets
from orchestrator.data.load.loader import Seen
from orchestrator.data.load.mixture import Mixture, Part, is_mixture
from orchestrator.data.load.order import Indices
from orchestrator.errors import JobError
from orchestrator.job_data import Phase
from orchestrator.objectives.protocol import Batch

_SORTED_TOGETHER = 256
"""Pieces of a split that are sorted by length among each other: passes pad little, and ranks have alike work."""


class RowTable:
    """The rows of a split, numbered from 0 over its shards in stream order; opening costs O(shards).

    Args:
        parts: sources, or datasets of a mixture.

    Raises:
        DataError: a shard cannot be read.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = list(parts)
        self._shards = [open_rows(path) for part in parts for path in part.shard_paths]
        self._starts = np.cumsum([0, *map(len, self._shards)], dtype=np.int64)
        self.borders = self._starts[np.cumsum([0, *(len(part.shard_paths) for part in parts)])]
        """[parts + 1] the row that each part begins with, and how many there are."""
        self.bytes_read = 0
        """Bytes of ids and labels that rows were read from since it was opened."""

    def __len__(self) -> int:
        return int(self._starts[-1])

    def lengths(self, column: str) -> Indices:
        """[rows] how many values each row has in a column of lists."""
        return np.concatenate([np.zeros(0, dtype=np.int64), *(shard.lengths(column) for shard in self._shards)])

    def numbers(self, column: str) -> npt.NDArray[Any]:
        """[rows] the values of a column of one number a row."""
        return np.concatenate([np.zeros(0, dtype=np.int64), *(shard.values(column) for shard in self._shards)])

    def row(self, column: str, number: int) -> Any:
        """One row's value: a view of its numbers, a text, or a list of texts."""
        shard = int(np.searchsorted(self._starts, number, side="right")) - 1
        value = self._shards[shard].row(column, number - int(self._starts[shard]))
        if isinstance(value, np.ndarray):
            self.bytes_read += value.nbytes
        return value


@dataclass(frozen=True)
class Pieces:
    """What the samples of a table are, in the order of rows. All [N]."""

    rows: Indices
    firsts: Indices
    """Where in its row a piece begins: a token or a word, as the kind counts."""
    ends: Indices
    """One after its last."""
    lengths: Indices
    """Tokens that the model reads, special ones included."""
    targets: Indices
    """Targets of the loss."""

    def __len__(self) -> int:
        return len(self.rows)


def cut_rows(
    ends: Indices, lengths: Indices, cuts: Mapping[int, Sequence[tuple[int, int, int]]], *, one_target: bool
) -> Pieces:
    """Pieces of rows, most of which are one.

    Args:
        ends: [rows] where a whole row ends.
        lengths: [rows] tokens that the model reads of a whole row.
        cuts: row -> (first, end, length) of each piece of the rows that are cut.
        one_target: a target a piece, or as many as the piece is long.
    """
    counts = np.ones(len(ends), dtype=np.int64)
    for row, own in cuts.items():
        counts[row] = len(own)
    starts = np.cumsum(counts) - counts
    rows = np.repeat(np.arange(len(ends)), counts)
    firsts, last, tokens = np.zeros_like(rows), ends[rows], lengths[rows]
    for row, own in cuts.items():
        at = slice(starts[row], starts[row] + len(own))
        firsts[at], last[at], tokens[at] = np.array(own, dtype=np.int64).T
    return Pieces(rows, firsts, last, tokens, np.ones_like(rows) if one_target else last - firsts)


class Rows(Protocol):
    """Rows of one kind, as an objective reads them."""

    table: RowTable
    pieces: Pieces
    part: str
    """The part of the loss that the targets are of."""

    def collate(self, numbers: Indices) -> Batch:
        """Pieces by number; without any a batch that counts nothing."""
        ...


class RowFeed:
    """`Feed` of labelled rows: step s is batch s, and every piece comes once an epoch.

    Of a mixture by weights each step has its shares; rows of any length then meet, and padding is what it is.

    Raises:
        JobError: there are no rows.
    """

    def __init__(self, rows: Rows, *, samples_per_step: int, seed: int, curriculum: Sequence[Phase] = ()) -> None:
        self.samples_per_step = samples_per_step
        self._rows, self._table, pieces = rows, rows.table, rows.pieces
        if not len(pieces):
            raise JobError("the training split has no rows", fix="lower data.split.validation and test, or add rows")
        borders = np.searchsorted(pieces.rows, self._table.borders)
        self._counts = np.diff(borders)
        before = np.concatenate([[0], np.cumsum(pieces.lengths)])
        self._tokens = np.diff(before[borders])
        self._mixture: Mixture | None = None
        self._batches: LengthBuckets | _MixedBatches
        if is_mixture(self._table.parts, curriculum):
            self._mixture = Mixture(
                self._table.parts,
                self._counts.tolist(),
                curriculum=curriculum,
                samples_per_step=samples_per_step,
                seed=seed,
            )
            self._batches = _MixedBatches(self._mixture, samples_per_step)
        else:
            self._batches = LengthBuckets(pieces.lengths, batch_rows=samples_per_step, seed=seed)
        self._held: tuple[int, Indices] = (0, np.zeros(0, dtype=np.int64))

    def read(self, step: int, first: int, last: int) -> Batch:
        """As Feed. Of the short batch that ends an epoch all ranks get less, in the same proportion."""
        numbers, whole = self._numbers(step), self.samples_per_step
        return self._rows.collate(numbers[first * len(numbers) // whole : last * len(numbers) // whole])

    def samples(self, step: int) -> Indices:
        """As Feed: rows, over the shards of the split in order."""
        return self._rows.pieces.rows[self._numbers(step)]

    def totals(self, step: int) -> Mapping[str, int]:
        """As Feed."""
        return {self._rows.part: int(self._rows.pieces.targets[self._numbers(step)].sum())}

    @property
    def bytes_read(self) -> int:
        """As Feed."""
        return self._table.bytes_read

    def seen(self, step: int) -> dict[str, Seen]:
        """As Feed; tokens are those of the samples seen if each had its part's mean length."""
        if self._mixture is None or len(self._counts) < 2:
            return {}
        epochs = self._mixture.consumed(step * self.samples_per_step) / np.maximum(self._counts, 1)
        tokens = np.rint(epochs * self._tokens).astype(np.int64)
        pairs = zip(self._table.parts, tokens.tolist(), epochs.tolist(), strict=True)
        return {part.name: Seen(own, passes) for part, own, passes in pairs}

    def _numbers(self, step: int) -> Indices:
        if self._held[0] != step:
            self._held = step, self._batches.batch(step - 1)
        return self._held[1]


class _MixedBatches:
    """Batches 0, 1, 2, ... of a mixture."""

    def __init__(self, mixture: Mixture, batch_rows: int) -> None:
        self._mixture, self._batch_rows = mixture, batch_rows

    def batch(self, number: int) -> Indices:
        return self._mixture.at(np.arange(number * self._batch_rows, (number + 1) * self._batch_rows))


class RowExamples:
    """`Examples` of labelled rows, in the order of the split but for neighbours, which are sorted by length.

    Args:
        most: pieces to read at most, of whole rows where there is one; None: all.
    """

    def __init__(self, rows: Rows, *, most: int | None = None) -> None:
        self._rows = rows
        pieces = rows.pieces
        self.count = len(pieces)
        if most is not None and most < self.count:
            self.count = int(np.searchsorted(pieces.rows, pieces.rows[most])) or most
        self._order = np.lexsort((pieces.lengths[: self.count], np.arange(self.count) // _SORTED_TOGETHER))

    def read(self, first: int, last: int) -> Batch:
        """As Examples."""
        return self._rows.collate(self._order[first:last])
