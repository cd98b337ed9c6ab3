"""A source's file as bytes, lines and text documents: unpacked as it is read, in bounded memory."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from typing import IO, Any

from orchestrator.data.sources.file import SourceFile, is_remote
from orchestrator.data.values import RowError
from orchestrator.errors import DataError

_BLOCK_BYTES = 1 << 20
_LINE_END_WINDOW_BYTES = 1 << 20
"""How far behind the wanted place a long text is cut at a line's end; without one there, it is cut inside the line."""
BOMB_FROM_BYTES = 64 << 20
BOMB_RATIO = 200
"""Text packs 3 to 10 times, logs 50 times; gzip can reach 1,030 times, with zeros."""


class SourceStream:
    """The unpacked bytes of a file.

    Raises:
        RowError: it cannot be opened, is cut off or broken, or unpacks to over 200 times its size.
        DataError: it is not there any more.
    """

    def __init__(self, file: SourceFile, *, start: int = 0) -> None:
        self._file = file
        self._given_bytes = 0
        try:
            self._raw = _open(file)
            if start:
                self._raw.seek(start)
        except FileNotFoundError:
            raise vanished(file) from None
        except OSError as error:
            raise _unreadable(file, error) from None

    def __enter__(self) -> SourceStream:
        return self

    def __exit__(self, *_: object) -> None:
        self._raw.close()

    def read(self, size: int = _BLOCK_BYTES) -> bytes:
        """The next bytes, up to `size`; none at the end."""
        try:
            block: bytes = self._raw.read(size)
        except OSError as error:
            raise _unreadable(self._file, error) from None
        self._given_bytes += len(block)
        if self._file.packing and self._given_bytes > BOMB_FROM_BYTES:
            ratio = self._given_bytes / max(1, self._file.size_bytes)
            if ratio > BOMB_RATIO:
                raise RowError(
                    f"unpacks to over {BOMB_RATIO} times its {self._file.size_bytes} bytes: not read further"
                )
        return block


def _open(file: SourceFile) -> Any:
    if file.packing:
        import pyarrow as pa

        return pa.CompressedInputStream(_open_plain(file), file.packing)
    return _open_plain(file)


def _open_plain(file: SourceFile) -> Any:
    if is_remote(file.path):
        from orchestrator.data.sources.remote import open_remote

        return open_remote(file.path)
    return open(file.path, "rb")


def open_table_file(file: SourceFile) -> IO[bytes] | Any:
    """A file that a reader of tables seeks in; a packed one is unpacked to a temporary file first.

    Raises:
        RowError: it cannot be read.
        DataError: it is not there any more.
    """
    if not file.packing:
        try:
            return _open_plain(file)
        except FileNotFoundError:
            raise vanished(file) from None
        except OSError as error:
            raise _unreadable(file, error) from None
    unpacked = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    with SourceStream(file) as stream:
        while block := stream.read():
            unpacked.write(block)
    unpacked.seek(0)
    return unpacked


def _unreadable(file: SourceFile, error: OSError) -> RowError | DataError:
    """A file that is wrong is rejected; a disk or a network that fails is no reason to go on without the file."""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EISDIR):
        return RowError(f"not readable: {error.strerror}")
    if error.errno is None and file.packing:  # Arrow's words for broken data
        return RowError(f"broken {file.packing} data: {str(error).splitlines()[0]}")
    return DataError(
        f"{file.path} could not be read: {error.strerror or str(error).splitlines()[0]}",
        fix="mend the cause, then run the same command again: what is finished is kept",
    )


def require_unchanged(file: SourceFile) -> None:
    """Refuse a file that is not what was listed: the dataset's name says what it was made of.

    Raises:
        DataError: it has changed or is gone.
    """
    if is_remote(file.path):
        from orchestrator.data.sources.remote import status_of

        now = status_of(file.path)
    else:
        try:
            status = os.stat(file.path)
            now = (status.st_size, status.st_mtime_ns)
        except OSError:
            now = None
    if now is None:
        raise vanished(file)
    if now != (file.size_bytes, file.mtime_ns):
        raise DataError(
            f"{file.path} changed while it was read: it had {file.size_bytes} bytes and has {now[0]}",
            fix="let whoever writes it finish, then run the same command again",
        )


def vanished(file: SourceFile) -> DataError:
    """The error for a file that is gone."""
    return DataError(f"{file.path} was listed and is gone", fix="run the same command again: it lists the sources anew")


def lines(stream: SourceStream, *, start: int, end: int | None, limit_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """The lines that begin in the byte range [start, end), numbered from 1; None for one over `limit_bytes`.

    The stream begins one byte before `start`, so that a line which begins exactly there is seen to.
    """
    number, at = 0, max(0, start - 1)
    held, dropped_bytes = b"", 0
    skipping = start > 0  # the end of a line that the range before has
    while block := stream.read():
        *ended, rest = block.split(b"\n")
        for piece in ended:
            length = dropped_bytes + len(held) + len(piece)
            line = held + piece if length <= limit_bytes else None
            held, dropped_bytes = b"", 0
            if skipping:
                skipping = False
            elif end is not None and at >= end:
                return
            else:
                number += 1
                yield number, line
            at += length + 1
        held += rest
        if len(held) > limit_bytes:
            held, dropped_bytes = b"", dropped_bytes + len(held)
    if (held or dropped_bytes) and not skipping and (end is None or at < end):
        yield number + 1, None if dropped_bytes else held


def pieces(stream: SourceStream, *, start: int, end: int | None, piece_bytes: int) -> Iterator[tuple[int, bytes]]:
    """A text in pieces of about `piece_bytes`, numbered from 1, cut at line ends; the stream begins at `start`.

    Piece k begins behind the first line end from byte k * piece_bytes on, so that a range of pieces, whose first
    byte `start` is such a multiple, is the same wherever it is read from.
    """
    number, base, held, at_end = start // piece_bytes, start, bytearray(), False
    window = min(_LINE_END_WINDOW_BYTES, piece_bytes // 2)  # so that no piece reaches behind the next one's beginning

    def cut_at(wanted: int) -> int:
        """Read far enough, and find where the piece that begins at or behind `wanted` begins, in `held`."""
        nonlocal at_end
        while not at_end and base + len(held) < wanted + window:
            block = stream.read()
            at_end = not block
            held.extend(block)
        place = min(wanted - base, len(held))
        newline = held.find(b"\n", place, place + window)
        if newline >= 0:
            return newline + 1
        while place < len(held) and held[place] & 0xC0 == 0x80:  # inside a character
            place += 1
        return place

    if number:
        first = cut_at(start)
        del held[:first]
        base += first
    while True:
        cut = cut_at((number + 1) * piece_bytes)
        if not cut:
            return
        number += 1
        yield number, bytes(held[:cut])
        del held[:cut]
        base += cut
        if (end is not None and number * piece_bytes >= end) or (at_end and not held):
            return
