"""Arrow's IPC files and streams: mapped into memory, and looked over before anything in them is trusted."""

from __future__ import annotations

import io
import mmap
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from orchestrator.data.values import RowError

_COPY_BLOCK_BYTES = 4 << 20
_BINARY = {
    pa.string(): pa.binary(),
    pa.large_string(): pa.large_binary(),
    pa.string_view(): pa.binary_view(),
}


def map_file(raw: Any) -> mmap.mmap:
    """The file in memory, page by page as it is looked at; an object is copied to a temporary file first.

    Raises:
        RowError: it is empty.
        OSError: it cannot be read, or there is no room to copy it to.
    """
    with tempfile.TemporaryFile() as local:
        try:
            handle = raw.fileno()
        except (AttributeError, io.UnsupportedOperation):
            shutil.copyfileobj(raw, local, _COPY_BLOCK_BYTES)
            local.flush()
            handle = local.fileno()
        if not os.fstat(handle).st_size:
            raise RowError("empty")
        return mmap.mmap(handle, 0, access=mmap.ACCESS_READ)


def open_arrow(data: pa.Buffer, fields: list[int]) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Schema and batches of the columns at these places, in the file's order; of all, if none is given.

    Raises:
        pyarrow.ArrowInvalid, OSError: it is neither an Arrow file nor a stream.
    """
    options = pa.ipc.IpcReadOptions(included_fields=fields)
    try:
        reader = pa.ipc.open_file(pa.BufferReader(data), options=options)
    except pa.ArrowInvalid:
        stream = pa.ipc.open_stream(pa.BufferReader(data), options=options)
        return stream.schema, iter(stream)
    return reader.schema, (reader.get_batch(i) for i in range(reader.num_record_batches))


def without_text(kind: pa.DataType) -> pa.DataType:
    """The same type with bytes for text: it can be checked without a look at the text."""
    if pa.types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, without_text(kind.value_type), kind.ordered)
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(without_text(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(without_text(kind.key_type), without_text(kind.item_type))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        make = pa.list_ if pa.types.is_list(kind) else pa.large_list
        return make(kind.value_field.with_type(without_text(kind.value_type)))
    return _BINARY.get(kind, kind)


def compressed_bytes(data: pa.Buffer) -> int:
    """What the compressed buffers of an Arrow file or stream will take: each says so in its first 8 bytes."""
    total = 0
    try:
        for message in pa.ipc.MessageReader.open_stream(data[8:] if data[:6].to_pybytes() == b"ARROW1" else data):
            total += _unpacked_bytes(memoryview(message.metadata), message.body)
    except (pa.ArrowException, OSError, struct.error):
        pass  # the reader will come there, and say it
    return total


def _unpacked_bytes(flat: memoryview, body: pa.Buffer | None) -> int:
    """Of one message, a flatbuffer (Message.fbs: header type 3 is a RecordBatch, 2 a DictionaryBatch around one)."""

    def at(place: int) -> int:
        return place + int(struct.unpack_from("<I", flat, place)[0])

    def field(table: int, index: int) -> int:
        entry = 4 + 2 * index
        fields = table - struct.unpack_from("<i", flat, table)[0]
        if entry >= struct.unpack_from("<H", flat, fields)[0]:
            return 0
        offset = struct.unpack_from("<H", flat, fields + entry)[0]
        return table + offset if offset else 0

    message = at(0)
    kind = flat[field(message, 1)]
    if body is None or kind not in (2, 3):
        return 0
    batch = at(field(message, 2))
    if kind == 2:
        batch = at(field(batch, 1))
    if not field(batch, 3):  # no compression
        return 0
    buffers, total = at(field(batch, 2)), 0
    for i in range(struct.unpack_from("<I", flat, buffers)[0]):
        start, length = struct.unpack_from("<qq", flat, buffers + 4 + 16 * i)
        if length >= 8:
            total += max(0, struct.unpack_from("<q", body, start)[0])
    return total
