"""Tables: Parquet, Arrow IPC (files, streams, Feather, and what `datasets` saves), read batch by batch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq

from orchestrator.data.sources.listing import SourceFile
from orchestrator.data.sources.streams import open_table_file
from orchestrator.data.values import Rejected, Row, RowError

_BATCH_ROWS = 256


def read_table(file: SourceFile, columns: list[str] | None) -> Iterator[Row | Rejected]:
    """The rows of a table. A file that breaks off gives the rows before, and says where.

    Raises:
        RowError: it is not of its format, or has not the columns that are asked for.
    """
    number = 0
    try:
        with open_table_file(file) as raw:
            for batch, names in _batches(raw, file, columns):
                for values in _plain_rows(batch, names):
                    number += 1
                    yield Row(number, values)
    except (pa.ArrowException, OSError) as error:
        reason = f"not readable as {file.format}: {str(error).splitlines()[0][:200]}"
        yield Rejected(file.relative, number + 1 if number else None, reason)


def _batches(
    raw: Any, file: SourceFile, columns: list[str] | None
) -> Iterator[tuple[pa.RecordBatch, dict[str, list[str]]]]:
    """Record batches of the columns that are asked for, and the names of integer labels by column."""
    if file.format == "parquet":
        parquet = pq.ParquetFile(raw, pre_buffer=False, buffer_size=1 << 20)
        wanted = _require(parquet.schema_arrow, columns)
        for batch in parquet.iter_batches(batch_size=_BATCH_ROWS, columns=wanted):
            yield batch, _label_names(parquet.schema_arrow)
        return
    try:
        reader = pa.ipc.open_file(raw)
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
    except pa.ArrowInvalid:
        raw.seek(0)
        reader = pa.ipc.open_stream(raw)
        batches = iter(reader)
    wanted = _require(reader.schema, columns)
    names = _label_names(reader.schema)
    for batch in batches:
        yield batch.select(wanted), names


def _require(schema: pa.Schema, columns: list[str] | None) -> list[str]:
    if columns is None:
        return list(schema.names)
    for name in columns:
        if name not in schema.names:
            raise RowError(f"no field {name!r}; there are {', '.join(schema.names)[:200]}")
    return columns


def _label_names(schema: pa.Schema) -> dict[str, list[str]]:
    """What `datasets` writes about its columns: the names behind the integers of a ClassLabel."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    found = {}
    for name, feature in features.items():
        inner = feature.get("feature", feature) if isinstance(feature, dict) else {}
        if isinstance(inner, dict) and inner.get("_type") == "ClassLabel":
            found[name] = list(inner["names"])
    return found


def _plain_rows(batch: pa.RecordBatch, names: dict[str, list[str]]) -> Iterator[dict[str, Any]]:
    for row in batch.to_pylist():
        for column, labels in names.items():
            if column in row:
                row[column] = _named(row[column], labels)
        yield row


def _named(value: Any, labels: list[str]) -> Any:
    if isinstance(value, list):
        return [_named(item, labels) for item in value]
    return labels[value] if isinstance(value, int) and 0 <= value < len(labels) else value
