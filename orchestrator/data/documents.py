"""Documents between two passes of a preparation: Arrow files, memory-mapped, any document by its number.

Beside them raw arrays, one number or row a document, for what looks at all documents at once: `digests`, `ids`,
`bytes`, `splits`, `signatures`.
"""

from __future__ import annotations

import array
import bisect
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from orchestrator.data.values import Record

ID_BYTES = 16
_FILE = "documents.arrow"
_REMOVED = "removed.arrow"
_BATCH_BYTES = 4 << 20
_BATCH_ROWS = 8192
_SCHEMA = pa.schema(
    {
        "texts": pa.list_(pa.string()),
        "labels": pa.string(),
        "id": pa.binary(ID_BYTES),
        "file": pa.int32(),
        "row": pa.int64(),
        "split": pa.string(),
        "personal": pa.string(),
    }
)
_REMOVED_SCHEMA = pa.schema(
    {"id": pa.binary(ID_BYTES), "file": pa.int32(), "row": pa.int64(), "state": pa.string(), "kept_as": pa.binary(16)}
)
Numbers = npt.NDArray[Any]


class Document(NamedTuple):
    """A document, and where it comes from."""

    texts: list[str]
    labels: str
    """JSON; empty for `kind: text`."""
    id: bytes
    """Digest of its text after cleaning, before redaction; where it has no text, of its labels."""
    file: int
    """Number of its part in the unit."""
    row: int
    """In its part, from 1."""
    split: str
    """The split that its source gives; empty: by hash."""
    personal: str = ""
    """JSON: how many of each kind of personal data were in it; empty: none."""

    @property
    def text(self) -> str:
        """All parts as one text."""
        return self.texts[0] if len(self.texts) == 1 else "\n".join(self.texts)

    @property
    def record(self) -> Record:
        """As labelled kinds know it."""
        return Record(tuple(self.texts), json.loads(self.labels) if self.labels else {})


class Removed(NamedTuple):
    """A document that is not in the dataset, and why."""

    id: bytes
    file: int
    row: int
    state: str
    kept_as: bytes | None = None
    """Of a duplicate: the document that stays in its place."""


class _Batches:
    """Rows to an Arrow file, in batches of bounded size."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._sink, schema)
        self._rows: list[tuple[Any, ...]] = []
        self._held_bytes = 0

    def append(self, row: tuple[Any, ...], size_bytes: int) -> None:
        self._rows.append(row)
        self._held_bytes += size_bytes
        if self._held_bytes >= _BATCH_BYTES or len(self._rows) >= _BATCH_ROWS:
            self.flush()

    def flush(self) -> None:
        if self._rows:
            columns = [pa.array(c, f.type) for c, f in zip(zip(*self._rows, strict=True), self._schema, strict=True)]
            self._writer.write_batch(pa.record_batch(columns, schema=self._schema))
        self._rows, self._held_bytes = [], 0

    def close(self) -> None:
        self.flush()
        self._writer.close()
        self._sink.close()


class DocumentWriter:
    """Documents, removed documents and arrays of one unit, appended as they come."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._documents = _Batches(folder / _FILE, _SCHEMA)
        self._removed = _Batches(folder / _REMOVED, _REMOVED_SCHEMA)
        self._digests = (folder / "digests").open("wb")
        self._ids = (folder / "ids").open("wb")
        self._bytes = array.array("q")
        self._splits = bytearray()
        self.count = 0

    def __enter__(self) -> DocumentWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._documents.close()
        self._removed.close()
        self._digests.close()
        self._ids.close()
        (self._folder / "bytes").write_bytes(self._bytes.tobytes())
        (self._folder / "splits").write_bytes(bytes(self._splits))

    def append(self, document: Document, *, digest: bytes | None = None) -> None:
        """A document that stays for now; `digest` is what duplicates share, its id by default."""
        size_bytes = len(document.text.encode())
        self._documents.append(document, size_bytes + len(document.labels))
        self._digests.write(digest or document.id)
        self._ids.write(document.id)
        self._bytes.append(size_bytes)
        self._splits.append(SPLIT_CODES[document.split])
        self.count += 1

    def remove(self, removed: Removed) -> None:
        """A document that is removed."""
        self._removed.append(removed, 64)


SPLIT_CODES = {"test": 0, "validation": 1, "train": 2, "": 3}
"""The order in which duplicates are looked at: what is measured with stays, what is trained on goes."""


def read_array(folder: Path, name: str) -> Numbers:
    """One of a unit's arrays, memory-mapped: digests and ids [N, 16], bytes [N], splits [N], signatures [N, values]."""
    dtype, columns = {
        "digests": (np.uint8, ID_BYTES),
        "ids": (np.uint8, ID_BYTES),
        "bytes": (np.int64, 0),
        "splits": (np.uint8, 0),
        "signatures": (SIGNATURE_DTYPE, SIGNATURE_VALUES),
    }[name]
    path = folder / name
    if not path.stat().st_size:
        return np.empty((0, columns) if columns else (0,), dtype=dtype)
    flat = np.memmap(path, dtype=dtype, mode="r")
    return flat.reshape(-1, columns) if columns else flat


SIGNATURE_DTYPE: npt.DTypeLike = np.uint32
SIGNATURE_VALUES = 128


def read_documents(folder: Path) -> Iterator[Document]:
    """The documents of a unit, in order."""
    for batch in _batches(folder / _FILE):
        yield from map(Document._make, zip(*batch.to_pydict().values(), strict=True))


def read_removed(folder: Path) -> Iterator[Removed]:
    """The documents that were removed from a unit, in order."""
    for batch in _batches(folder / _REMOVED):
        yield from map(Removed._make, zip(*batch.to_pydict().values(), strict=True))


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    reader = pa.ipc.open_file(pa.memory_map(str(path), "r"))
    for i in range(reader.num_record_batches):
        yield reader.get_batch(i)


@dataclass
class TextAt:
    """Texts of several units by the documents' numbers over all of them."""

    folders: list[Path]
    counts: list[int]

    def __post_init__(self) -> None:
        self._starts = np.concatenate([[0], np.cumsum(self.counts)]).tolist()
        self._open: dict[int, tuple[list[pa.RecordBatch], list[int]]] = {}

    def __call__(self, number: int) -> str:
        """The text of a document."""
        unit = bisect.bisect_right(self._starts, number) - 1
        if unit not in self._open:
            batches = list(_batches(self.folders[unit] / _FILE))
            self._open[unit] = batches, np.concatenate([[0], np.cumsum([len(b) for b in batches])]).tolist()
        batches, starts = self._open[unit]
        inside = number - self._starts[unit]
        batch = bisect.bisect_right(starts, inside) - 1
        return "\n".join(batches[batch].column("texts")[inside - starts[batch]].as_py())
