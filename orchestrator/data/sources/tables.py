"""Tables: Parquet, Arrow IPC (files, streams, Feather, and what `datasets` saves), read in small pieces.

A piece is at most 64 rows and about 4 MB, but for rows that are larger themselves. Arrow files are mapped into memory;
of Parquet no more is unpacked at once than a page of each column and the values of a piece.
"""

from __future__ import annotations

import json
import math
import mmap
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from orchestrator.data.sources.arrow_ipc import compressed_bytes, map_file, open_arrow, without_text
from orchestrator.data.sources.file import SourceFile
from orchestrator.data.sources.streams import BOMB_FROM_BYTES, BOMB_RATIO, open_table_file
from orchestrator.data.values import Rejected, Row, RowError
from orchestrator.errors import DataError

_PIECE_ROWS = 64
_PIECE_BYTES = 4 << 20
_SHARED_BYTES = 64 << 20
"""A piece may grow to this where rows share a value, as in dictionaries: what it takes shows only when it is there."""
_RELEASE_BYTES = 64 << 20
"""Mapped pages are given back each time so much was read."""
_UNREADABLE = (ValueError, ArithmeticError, LookupError, ImportError, TypeError, pa.ArrowNotImplementedError)
"""What conversion to Python raises: bad UTF-8, a date before year 1, an unknown time zone."""


def read_table(file: SourceFile, columns: list[str] | None) -> Iterator[Row | Rejected]:
    """The rows of a table. A file that breaks off gives the rows before, and says where.

    A row is rejected if a text in it is not UTF-8, or if a column that is asked for has no value in Python. Without
    `columns` all are read, and such a value is None.

    Raises:
        RowError: it is not of its format, has not the columns that are asked for, has two of one name, or expands to
            over 200 times its size.
        DataError: an object store does not answer.
        OSError: disk, network or machine fail; no fault of the file.
    """
    raw = _Watched(open_table_file(file))
    number = 0
    try:
        pieces = _parquet_pieces if file.format == "parquet" else _arrow_pieces
        for values in _rows(pieces(raw, file, columns), file, required=columns is not None):
            number += 1
            yield Rejected(file.relative, number, values) if isinstance(values, str) else Row(number, values)
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None or (isinstance(error, MemoryError) and not _absurd(error, file)):
            raise
        if raw.failure is not None:  # an object store's errors have no number either
            raise DataError(
                f"{file.path} could not be read: {str(raw.failure).splitlines()[0]}",
                fix="mend the cause, then run the same command again: what is finished is kept",
            ) from None
        reason = f"not readable as {file.format}: {(str(error).splitlines() or ['damaged'])[0][:200]}"
        yield Rejected(file.relative, number + 1 if number else None, reason)
    finally:
        raw.close()


def _absurd(error: MemoryError, file: SourceFile) -> bool:
    """Whether Arrow wanted so much memory that the file must be wrong, rather than the machine too small."""
    wanted = re.search("of size ([0-9]+)", str(error))
    return wanted is not None and int(wanted[1]) > max(BOMB_FROM_BYTES, BOMB_RATIO * file.size_bytes)


class _Watched:
    """A file that remembers that reading it failed: Arrow reports broken data and broken disks alike."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self.failure: OSError | None = None

    def read(self, size: int = -1) -> bytes:
        try:
            return bytes(self._raw.read(size))
        except OSError as error:
            self.failure = error
            raise

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._raw.seek(offset, whence))

    def tell(self) -> int:
        return int(self._raw.tell())

    def fileno(self) -> int:
        return int(self._raw.fileno())

    def close(self) -> None:
        self._raw.close()

    @property
    def closed(self) -> bool:
        return bool(self._raw.closed)


_Piece = tuple[dict[str, pa.Array], dict[str, list[str]]]
"""Columns by name, and the names of integer labels by column."""


def _rows(pieces: Iterator[_Piece], file: SourceFile, *, required: bool) -> Iterator[dict[str, Any] | str]:
    """Each row's values by column, or why it is rejected."""
    given_bytes = 0
    for columns, names in pieces:
        faults: dict[int, str] = {}
        values = {name: _values(column, name, faults, required=required) for name, column in columns.items()}
        for name, column in columns.items():
            given_bytes += column.nbytes + len(column)
            if _shared_bytes(column):
                given_bytes += sum(len(value) for value in values[name] if isinstance(value, str))
            if name in names:
                values[name] = [_named(value, names[name]) for value in values[name]]
        _refuse_bomb(file, given_bytes)
        for i, row in enumerate(zip(*values.values(), strict=True)):
            yield faults[i] if i in faults else dict(zip(values, row, strict=True))


def _values(column: pa.Array, name: str, faults: dict[int, str], *, required: bool) -> list[Any]:
    """A column in Python. Where one value cannot be, its row gets a fault, or only None if nobody asked for it."""
    try:
        return list(column.to_pylist())
    except _UNREADABLE:
        pass
    values: list[Any] = []
    for i, value in enumerate(column):
        try:
            values.append(value.as_py())
        except UnicodeDecodeError as error:
            values.append(None)
            faults.setdefault(i, f"not UTF-8 at byte {error.start}")
        except _UNREADABLE as error:
            values.append(None)
            if required:
                faults.setdefault(i, f"{name} is a {column.type} that cannot be read: {str(error)[:100]}")
    return values


def _named(value: Any, labels: list[str]) -> Any:
    if isinstance(value, list):
        return [_named(item, labels) for item in value]
    return labels[value] if isinstance(value, int) and 0 <= value < len(labels) else value


def _refuse_bomb(file: SourceFile, given_bytes: int) -> None:
    if given_bytes > max(BOMB_FROM_BYTES, BOMB_RATIO * file.size_bytes):
        raise RowError(f"unpacks to over {BOMB_RATIO} times its {file.size_bytes} bytes: not read further")


def _require(schema: pa.Schema, columns: list[str] | None) -> list[str]:
    counts = Counter(schema.names)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise RowError(f"two columns are named {twice[0]!r}")
    if columns is None:
        return list(schema.names)
    for name in columns:
        if name not in counts:
            raise RowError(f"no field {name!r}; there are {', '.join(schema.names)[:200]}")
    return columns


def _label_names(schema: pa.Schema) -> dict[str, list[str]]:
    """What `datasets` writes about its columns: the names behind the integers of a ClassLabel. Others' words: none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"].items()
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
    found = {}
    for name, feature in features:
        inner = feature.get("feature", feature) if isinstance(feature, dict) else None
        if isinstance(inner, dict) and inner.get("_type") == "ClassLabel":
            labels = inner.get("names")
            if isinstance(labels, list) and all(isinstance(label, str) for label in labels):
                found[name] = labels
    return found


def _cut(batch: pa.RecordBatch, names: dict[str, list[str]]) -> Iterator[_Piece]:
    """A batch in pieces."""
    most = max(1, min([_PIECE_ROWS, *(_SHARED_BYTES // max(1, _shared_bytes(column)) for column in batch.columns)]))
    start, rows = 0, most
    while start < batch.num_rows:
        columns = {name: _dense(batch.column(name).slice(start, rows)) for name in batch.schema.names}
        if rows > 1 and sum(column.nbytes for column in columns.values()) > _PIECE_BYTES:
            rows //= 2
            continue
        yield columns, names
        start, rows = start + rows, min(most, rows * 2)


def _shared_bytes(column: pa.Array) -> int:
    """How large one value may be, where rows share values; 0 where each has its own bytes."""
    if pa.types.is_dictionary(column.type):
        return int(column.dictionary.nbytes)
    if pa.types.is_run_end_encoded(column.type):
        return int(column.values.nbytes)
    views = (pa.types.is_string_view, pa.types.is_binary_view, pa.types.is_list_view, pa.types.is_large_list_view)
    return int(column.nbytes) if any(is_view(column.type) for is_view in views) else 0


def _dense(column: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        return column.dictionary_decode()
    return pc.run_end_decode(column) if pa.types.is_run_end_encoded(column.type) else column


def _parquet_pieces(raw: _Watched, file: SourceFile, columns: list[str] | None) -> Iterator[_Piece]:
    parquet = pq.ParquetFile(raw, pre_buffer=False, buffer_size=1 << 20)
    wanted = _require(parquet.schema_arrow, columns)
    names = _label_names(parquet.schema_arrow)
    _refuse_bomb(file, sum(parquet.metadata.row_group(i).total_byte_size for i in range(parquet.num_row_groups)))
    for i in range(parquet.num_row_groups):
        rows = _rows_at_once(parquet, raw, i, wanted)
        for batch in parquet.iter_batches(batch_size=rows, row_groups=[i], columns=wanted, use_threads=False):
            yield from _cut(batch.select(wanted), names)


def _rows_at_once(parquet: pq.ParquetFile, raw: _Watched, number: int, wanted: list[str]) -> int:
    """How many rows to unpack together, so that the mean row and the largest value that may repeat both fit."""
    group = parquet.metadata.row_group(number)
    if group.total_byte_size * _PIECE_ROWS <= _SHARED_BYTES:
        return _PIECE_ROWS
    # Damaged metadata of a column ends the process where Python asks for it. A reader, which raises, must see it first.
    next(parquet.iter_batches(batch_size=1, row_groups=[number], columns=wanted, use_threads=False), None)
    paths = [parquet.schema.column(i).path for i in range(group.num_columns)]  # a nested column has several leaves
    chunks = [group.column(i) for i, path in enumerate(paths) if any(f"{path}.".startswith(f"{n}.") for n in wanted)]
    rows = max(1, group.num_rows)
    mean_bytes = sum(chunk.total_uncompressed_size for chunk in chunks) / rows
    shared_bytes = sum(_largest_shared(raw, chunk) * math.ceil(chunk.num_values / rows) for chunk in chunks)
    fit = min(_PIECE_BYTES / max(1, mean_bytes), _SHARED_BYTES / max(1, shared_bytes))
    return max(1, min(_PIECE_ROWS, int(fit)))


def _largest_shared(raw: _Watched, chunk: Any) -> int:
    """At most so many bytes has a value that many rows may share: the size of the dictionary's page.

    The page's header is Thrift's compact protocol; field 1 is the type (2: dictionary), field 2 the bytes unpacked
    (parquet.thrift, PageHeader).
    """
    whole = int(chunk.total_uncompressed_size)
    if chunk.physical_type != "BYTE_ARRAY" or whole * _PIECE_ROWS <= _SHARED_BYTES:
        return whole if chunk.physical_type == "BYTE_ARRAY" else 0
    if "DELTA_BYTE_ARRAY" in chunk.encodings:  # a value repeats the beginning of the one before
        return whole
    if not any("DICTIONARY" in encoding for encoding in chunk.encodings):
        return 0
    raw.seek(chunk.dictionary_page_offset or chunk.data_page_offset)
    head = raw.read(16)
    if head[:3] != b"\x15\x04\x15":
        return whole
    size = 0
    for place, byte in enumerate(head[3:]):
        size |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            break
    return size >> 1


def _arrow_pieces(raw: _Watched, file: SourceFile, columns: list[str] | None) -> Iterator[_Piece]:
    mapped = map_file(raw)
    data = pa.py_buffer(mapped)
    schema, _ = open_arrow(data, [])
    wanted, names = _require(schema, columns), _label_names(schema)
    _refuse_bomb(file, compressed_bytes(data))
    read_bytes = 0
    for batch in open_arrow(data, [schema.names.index(name) for name in wanted])[1]:
        batch.validate()
        for column in batch.columns:  # a wrong offset would end the process; bad UTF-8 is a matter of its row
            column.view(without_text(column.type)).validate(full=True)
        for piece in _cut(batch.select(wanted), names):
            yield piece
            read_bytes += sum(column.nbytes for column in piece[0].values())
            if read_bytes > _RELEASE_BYTES:
                mapped.madvise(mmap.MADV_DONTNEED)
                read_bytes = 0
