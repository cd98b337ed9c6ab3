"""What a `.wandb` file holds: records in LevelDB's log format, behind a header of 7 bytes. Knows nothing of W&B."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

_BLOCK_BYTES = 32 * 1024
_HEADER = struct.Struct("<IHB")
"""Of each piece of a record: checksum, length, kind."""
_FULL, _LAST = 1, 4


def read_records(path: Path) -> Iterator[bytes]:
    """The whole records, in their order; one that was not written to its end is left out."""
    record = b""
    with path.open("rb") as file:
        at = len(file.read(7))
        while True:
            room = _BLOCK_BYTES - at % _BLOCK_BYTES
            if room < _HEADER.size:  # too little for another piece: zeros up to the next block
                at += room
                file.seek(at)
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                return
            _, length, kind = _HEADER.unpack(header)
            piece = file.read(length)
            if len(piece) < length or kind == 0:
                return
            at += _HEADER.size + length
            record += piece
            if kind in (_FULL, _LAST):
                yield record
                record = b""
