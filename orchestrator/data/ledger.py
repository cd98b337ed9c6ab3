"""The ledger: of every document that was read, where it is now or why it is not there. It holds no text.

It answers the question behind a request for erasure: which datasets hold this text, where, and who trained on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from orchestrator.data.documents import ID_BYTES, Removed

KEPT = "kept"
_PLAIN = pa.schema(
    {
        "id": pa.binary(ID_BYTES),
        "state": pa.string(),
        "source": pa.int32(),
        "file": pa.string(),
        "row": pa.int64(),
        "split": pa.string(),
        "shard": pa.string(),
        "position": pa.int64(),
        "first_token": pa.int64(),
        "tokens": pa.int64(),
        "kept_as": pa.binary(ID_BYTES),
    }
)
_BATCH_ROWS = 8192


class Entry(NamedTuple):
    """One document."""

    id: bytes
    state: str
    """`kept`, `quality:RULE`, `exact_duplicate`, `near_duplicate`, `contaminated`, `personal_data`."""
    source: int
    file: str
    row: int
    split: str | None = None
    shard: str | None = None
    position: int | None = None
    """Number of the document in its shard, from 0."""
    first_token: int | None = None
    tokens: int | None = None
    kept_as: bytes | None = None


@dataclass(frozen=True)
class Origin:
    """Of one part of a unit: its source, its file, and what to add to its rows."""

    source: int
    file: str
    base_row: int


def removed_entries(removed: Iterator[Removed], origins: Sequence[Origin]) -> Iterator[Entry]:
    """What the passes before have taken out."""
    for one in removed:
        origin = origins[one.file]
        row = one.row + origin.base_row
        yield Entry(one.id, one.state, origin.source, origin.file, row, kept_as=one.kept_as)


class LedgerWriter:
    """The entries of one unit, written as they come."""

    def __init__(self, path: Path) -> None:
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._sink, _PLAIN)
        self._held: list[Entry] = []

    def __enter__(self) -> LedgerWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._writer.close()
        self._sink.close()

    def append(self, entry: Entry) -> None:
        """One document."""
        self._held.append(entry)
        if len(self._held) >= _BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._held:
            columns = [pa.array(c, f.type) for c, f in zip(zip(*self._held, strict=True), _PLAIN, strict=True)]
            self._writer.write_batch(pa.record_batch(columns, schema=_PLAIN))
        self._held = []


def entry_at(path: Path, shard: str, position: int) -> dict[str, Any] | None:
    """The entry of a document by its place."""
    reader = pa.ipc.open_file(pa.memory_map(str(path), "r"))
    for i in range(reader.num_record_batches):
        batch = reader.get_batch(i)
        places = np.asarray(batch.column("position").fill_null(-1))
        for row in np.flatnonzero(places == position).tolist():
            if batch.column("shard")[row].as_py() == shard:
                found: dict[str, Any] = batch.slice(row, 1).to_pylist()[0]
                return found
    return None


def find_ids(paths: Sequence[Path], ids: Sequence[bytes], *, prefix: bool = False) -> Iterator[dict[str, Any]]:
    """The entries whose id is one of `ids`, or (prefix) begins with one."""
    wanted = [np.frombuffer(one, dtype=np.uint8) for one in ids]
    for path in paths:
        reader = pa.ipc.open_file(pa.memory_map(str(path), "r"))
        for i in range(reader.num_record_batches):
            batch = reader.get_batch(i)
            column = batch.column("id")
            if not len(column):
                continue
            own = np.frombuffer(column.buffers()[1], dtype=np.uint8).reshape(-1, ID_BYTES)
            own = own[column.offset : column.offset + len(column)]
            hit = np.zeros(len(own), dtype=bool)
            for one in wanted:
                hit |= (own[:, : len(one)] == one).all(axis=1) if prefix or len(one) == ID_BYTES else False
            for row in np.flatnonzero(hit).tolist():
                yield batch.slice(row, 1).to_pylist()[0]
