"""Files to rows: every format gives `Row`s in order, and a `Rejected` for what holds none. Bounded memory."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from orchestrator.data.sources.file import SourceFile
from orchestrator.data.sources.separated import read_separated
from orchestrator.data.sources.streams import SourceStream, lines, pieces, require_unchanged
from orchestrator.data.values import Rejected, Row, RowError
from orchestrator.job_data import Source

Found = Row | Rejected


@dataclass
class RowCount:
    """How far a part was read."""

    last: int = 0
    """The largest number of a row so far, rows that give nothing among them."""


@dataclass(frozen=True)
class Part:
    """What one task reads of a file: all of it, or the bytes [start, end)."""

    file: SourceFile
    start: int = 0
    end: int | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of the file in it."""
        return (self.file.size_bytes if self.end is None else self.end) - self.start


def read_rows(
    part: Part,
    source: Source,
    *,
    limit_bytes: int,
    columns: list[str] | None = None,
    count: RowCount | None = None,
) -> Iterator[Found]:
    """The rows of a part, in order. `columns` are those that are asked for of a table; null: all.

    Raises:
        DataError: the file changed or vanished while it was read.
    """
    found_any = False
    count = count or RowCount()
    try:
        for found in _read(part, source, limit_bytes, columns, count):
            found_any = True
            count.last = max(count.last, (found.row or 0) if isinstance(found, Rejected) else found.number)
            yield found
    except RowError as error:
        found_any = True
        yield Rejected(part.file.relative, None, str(error))
    except UnicodeDecodeError as error:
        found_any = True
        yield Rejected(part.file.relative, None, f"not readable as {part.file.format}: {error}")
    require_unchanged(part.file)
    if not found_any and part.start == 0:
        yield Rejected(part.file.relative, None, "empty" if part.file.format == "text" else "no rows")


def _read(part: Part, source: Source, limit_bytes: int, columns: list[str] | None, count: RowCount) -> Iterator[Found]:
    file = part.file
    match file.format:
        case "text":
            return _documents(part, source, limit_bytes)
        case "jsonl":
            return _json_lines(part, limit_bytes, count)
        case "csv" | "tsv":
            return read_separated(file, source.header, limit_bytes=limit_bytes)
        case "conll" | "squad":
            return _labelled(file, limit_bytes)
        case _:
            from orchestrator.data.sources.tables import read_table

            return read_table(file, columns)


def is_splittable(file: SourceFile, source: Source) -> bool:
    """Whether parts of the file can be read without what stands before them."""
    if file.packing is not None:
        return False
    return file.format == "jsonl" or (file.format == "text" and source.document_start is None)


def _documents(part: Part, source: Source, limit_bytes: int) -> Iterator[Found]:
    file = part.file
    whole = part.end is None and file.size_bytes <= limit_bytes and not file.packing
    with SourceStream(file, start=part.start) as stream:
        if source.document_start is not None:
            yield from _by_start(file, stream, re.compile(source.document_start), limit_bytes)
            return
        for number, raw in pieces(stream, start=part.start, end=part.end, piece_bytes=limit_bytes):
            row = None if whole else number
            try:
                yield Row(number, {"text": _decode(raw)})
            except RowError as error:
                yield Rejected(file.relative, row, str(error))


def _by_start(file: SourceFile, stream: SourceStream, start: re.Pattern[str], limit_bytes: int) -> Iterator[Found]:
    """Documents that begin where a line matches; a longer one is cut at line ends."""
    held: list[str] = []
    held_bytes = documents = 0
    for number, line in lines(stream, start=0, end=None, limit_bytes=limit_bytes):
        if line is None:
            yield Rejected(file.relative, number, f"a line over {limit_bytes} bytes")
            continue
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            yield Rejected(file.relative, number, f"not UTF-8 at byte {error.start}")
            continue
        if held and (start.search(text) or held_bytes + len(line) > limit_bytes):
            if "".join(held).strip():  # blank lines before the first beginning are no document
                documents += 1
                yield Row(documents, {"text": "".join(held)})
            held, held_bytes = [], 0
        held.append(text + "\n")
        held_bytes += len(line) + 1
    if "".join(held).strip():
        yield Row(documents + 1, {"text": "".join(held)})


def _json_lines(part: Part, limit_bytes: int, count: RowCount) -> Iterator[Found]:
    with SourceStream(part.file, start=max(0, part.start - 1)) as stream:
        for number, line in lines(stream, start=part.start, end=part.end, limit_bytes=limit_bytes):
            count.last = number
            if line is not None and not line.strip():
                continue
            try:
                yield Row(number, _json_row(line, limit_bytes))
            except RowError as error:
                yield Rejected(part.file.relative, number, str(error))


def _json_row(line: bytes | None, limit_bytes: int) -> dict[str, Any]:
    if line is None:
        raise RowError(f"a line over {limit_bytes} bytes")
    try:
        row = json.loads(_decode(line))
    except (ValueError, RecursionError) as error:
        raise error if isinstance(error, RowError) else RowError("not JSON") from None
    if not isinstance(row, dict):
        raise RowError("not a JSON object")
    return row


def _decode(raw: bytes) -> str:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RowError(f"not UTF-8 at byte {error.start}") from None
    if not text.strip():
        raise RowError("empty")
    return text


class _Raw(io.RawIOBase):
    """A stream as `io` wants it."""

    def __init__(self, stream: SourceStream) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._stream.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)


def _labelled(file: SourceFile, limit_bytes: int) -> Iterator[Found]:
    from orchestrator.data.labelled.conll import read_conll
    from orchestrator.data.labelled.squad import read_squad

    with SourceStream(file) as stream:
        if file.format == "conll":
            yield from read_conll(lines(stream, start=0, end=None, limit_bytes=limit_bytes), file.relative)
        else:
            text = io.TextIOWrapper(io.BufferedReader(_Raw(stream), 1 << 20), encoding="utf-8-sig")
            yield from read_squad(text, file.relative)
