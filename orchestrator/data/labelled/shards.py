"""Labelled rows as Arrow IPC files, memory-mapped: a column is its values and, for lists, where each row's begin.

A shard is one record batch; reading it copies nothing. A home of pyarrow, beside `data/shards.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from orchestrator.errors import DataError

_MARK = b"slipway"
_FORMAT = b"rows-1"
Array = npt.NDArray[Any]


def write_rows(path: Path, columns: Mapping[str, Any], metadata: Mapping[str, str]) -> int:
    """Write columns of one length as one shard; returns how many rows they have.

    Args:
        columns: name -> an array of one number a row, a matrix of one line a row, or a list of arrays of one type, of
            texts, or of lists of texts.
        metadata: stands in the file's schema.
    """
    arrays = [_arrow(values) for values in columns.values()]
    schema = pa.schema(
        [pa.field(name, array.type) for name, array in zip(columns, arrays, strict=True)],
        metadata={**{k.encode(): v.encode() for k, v in metadata.items()}, _MARK: _FORMAT},
    )
    batch = pa.record_batch(arrays, schema=schema)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(batch)
    return int(batch.num_rows)


@dataclass(frozen=True)
class _Column:
    values: Any
    """All rows' numbers one after another; of texts, the Arrow array."""
    offsets: npt.NDArray[np.int64] | None
    """[rows + 1] where each row's values begin and end; None: one value a row."""


@dataclass(frozen=True)
class RowShard:
    """An open shard: views into the mapped file."""

    path: Path
    num_rows: int
    metadata: dict[str, str]
    _columns: dict[str, _Column]

    def __len__(self) -> int:
        return self.num_rows

    @property
    def columns(self) -> list[str]:
        """Their names, in order."""
        return list(self._columns)

    def values(self, column: str) -> Array:
        """The numbers of all rows one after another; with `offsets`, those of any row. Read-only, not copied."""
        found = self._column(column).values
        if not isinstance(found, np.ndarray):
            raise DataError(f"the column {column} of {self.path} holds text, not numbers", fix="read it by rows")
        return found

    def offsets(self, column: str) -> npt.NDArray[np.int64]:
        """[rows + 1] positions in `values` at which rows begin; the last is where the last row ends."""
        found = self._column(column).offsets
        return np.arange(self.num_rows + 1, dtype=np.int64) if found is None else found

    def lengths(self, column: str) -> npt.NDArray[np.int64]:
        """[rows] how many values each row has."""
        return np.diff(self.offsets(column))

    def row(self, column: str, number: int) -> Any:
        """One row's value: a view of its numbers, a number, a text, or a list of texts."""
        if not 0 <= number < self.num_rows:
            raise IndexError(f"row {number} of {self.num_rows} in {self.path}")
        found = self._column(column)
        if found.offsets is None:
            value = found.values[number]
            if isinstance(value, pa.Scalar):
                return value.as_py()
            return value if isinstance(value, np.ndarray) else value.item()
        own = found.values[found.offsets[number] : found.offsets[number + 1]]
        return own.to_pylist() if isinstance(own, pa.Array) else own

    def _column(self, name: str) -> _Column:
        if name not in self._columns:
            raise DataError(
                f"{self.path} has no column {name}; it has {', '.join(self._columns)}",
                fix="prepare the dataset again with the kind of data that is asked for",
            )
        return self._columns[name]


def open_rows(path: Path) -> RowShard:
    """Map a shard into memory; nothing is read until it is used.

    Raises:
        DataError: it is absent, cut short, or not a shard of rows.
    """
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path), "r"))
        batch, metadata = reader.get_batch(0), reader.schema.metadata or {}
    except (OSError, pa.ArrowException, IndexError) as error:
        raise _unreadable(path, str(error)) from None
    if metadata.get(_MARK) != _FORMAT:
        raise _unreadable(path, "an Arrow file of something else")
    columns = {name: _opened(column) for name, column in zip(batch.schema.names, batch.columns, strict=True)}
    texts = {k.decode(): v.decode() for k, v in metadata.items() if k != _MARK}
    return RowShard(path, int(batch.num_rows), texts, columns)


def _unreadable(path: Path, why: str) -> DataError:
    return DataError(f"{path} is not a readable shard of rows: {why}", fix="delete the dataset and prepare it again")


def _arrow(values: Any) -> pa.Array:
    if isinstance(values, np.ndarray):
        if values.ndim == 1:
            return pa.array(values)
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    if values and isinstance(values[0], str):
        return pa.array(values, pa.large_string())
    offsets = pa.array(np.cumsum([0, *map(len, values)], dtype=np.int64))
    return pa.LargeListArray.from_arrays(offsets, _flat(values))


def _flat(values: Sequence[Any]) -> pa.Array:
    if values and isinstance(values[0], np.ndarray):
        return pa.array(np.concatenate(values))
    return pa.array([text for row in values for text in row], pa.large_string())


def _opened(column: pa.Array) -> _Column:
    if pa.types.is_large_list(column.type):
        inner = column.values
        values = inner if pa.types.is_large_string(inner.type) else inner.to_numpy()
        return _Column(values, column.offsets.to_numpy())
    if pa.types.is_fixed_size_list(column.type):
        return _Column(column.values.to_numpy().reshape(-1, column.type.list_size), None)
    return _Column(column if pa.types.is_large_string(column.type) else column.to_numpy(), None)
