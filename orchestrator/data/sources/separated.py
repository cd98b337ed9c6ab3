"""CSV and TSV: rows by line, also where a line is damaged or a quotation mark is never closed."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator

from orchestrator.data.sources.file import SourceFile
from orchestrator.data.sources.streams import SourceStream, lines
from orchestrator.data.values import Rejected, Row, RowError

_REREAD_RATIO = 4
"""Lines behind quotation marks that are not closed are read anew while that is less than so many times all lines."""

_Line = tuple[int, bytes | None]


def read_separated(file: SourceFile, header: list[str] | None, *, limit_bytes: int) -> Iterator[Row | Rejected]:
    """The rows below the header (`header` null: the first line that is not blank), by the line they begin in.

    CSV is as RFC 4180 has it, so a row may span lines; in TSV a quotation mark is a letter like any other. A row with
    a line in it that is none (over `limit_bytes`, not UTF-8, with a NUL) is rejected whole. A quoted cell that does
    not end within `limit_bytes` or at all is rejected, and the lines after its first are read anew; where a file is
    made of such cells, they are left out instead, so that the time stays in proportion to the file.

    Raises:
        RowError: the header is damaged, or names two columns alike.
    """
    csv.field_size_limit(2 * limit_bytes + 2)  # a row may come to the limit, and end with a line of that size
    with SourceStream(file) as stream:
        source = _Lines(lines(stream, start=0, end=None, limit_bytes=limit_bytes), limit_bytes)
        plain = file.format == "tsv"
        reader = csv.reader(source, delimiter="\t", quoting=csv.QUOTE_NONE) if plain else csv.reader(source)
        if header is None and (header := _header(reader, source, file)) is None:
            return
        if twice := next((name for i, name in enumerate(header) if name and name in header[:i]), None):
            raise RowError(f"two columns are named {twice!r}")
        while (cells := _cells(reader, source, file)) is not None:
            row = source.first
            if isinstance(cells, str):
                yield Rejected(file.relative, row, cells)
            elif cells and len(cells) != len(header):
                reason = f"{len(cells)} columns where there are {len(header)}: {', '.join(header)[:200]}"
                spanned = f"; lines {row} to {source.last} are in it" if source.last > row else ""
                yield Rejected(file.relative, row, reason + spanned)
            elif cells:
                yield Row(row, dict(zip(header, cells, strict=True)))


def _header(reader: Iterator[list[str]], source: _Lines, file: SourceFile) -> list[str] | None:
    while (cells := _cells(reader, source, file)) is not None:
        if isinstance(cells, str):
            raise RowError(f"line {source.first}, the header: {cells}")
        if len(cells) > 1 or (cells and cells[0].strip()):
            return cells
    return None


def _cells(reader: Iterator[list[str]], source: _Lines, file: SourceFile) -> list[str] | str | None:
    """The next row's cells (none for a blank line), why it is rejected, or null at the end."""
    source.begin_row()
    try:
        cells = next(reader, None)
    except _UnclosedError:
        return source.give_back()
    except csv.Error as error:
        return source.fault or f"not {file.format}: {error}"
    return source.fault or cells


class _UnclosedError(Exception):
    """The lines end, or come to the limit, inside a quoted cell."""


class _Lines:
    """Lines for a csv.reader, which asks for another one as long as a quoted cell is open.

    Keeps those of the row that is being read, at most `limit_bytes`, to read them again.
    """

    def __init__(self, found: Iterator[_Line], limit_bytes: int) -> None:
        self._found = found
        self._limit_bytes = limit_bytes
        self._again: deque[_Line] = deque()
        self._row: list[_Line] = []
        self._row_bytes = self._read_bytes = self._reread_bytes = 0
        self.fault: str | None = None
        """What is wrong with a line of the row."""

    @property
    def first(self) -> int:
        """The row's first line, from 1."""
        return self._row[0][0]

    @property
    def last(self) -> int:
        """The row's last line so far."""
        return self._row[-1][0]

    def begin_row(self) -> None:
        """What is read from here on is another row."""
        self._row, self._row_bytes, self.fault = [], 0, None

    def give_back(self) -> str:
        """Put the row's lines but the first back, unless that was done too often; the reason for the row."""
        reason = "a quotation mark that is not closed"
        if self.first < self.last:
            reason += f"; rows {self.first} to {self.last} are in it"
            if self._reread_bytes <= _REREAD_RATIO * self._read_bytes:
                self._reread_bytes += self._row_bytes
                self._again.extendleft(reversed(self._row[1:]))
                reason += f", those from {self._row[1][0]} on are read anew"
        return reason

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if self._row_bytes > self._limit_bytes:
            raise _UnclosedError
        fresh = not self._again
        found = next(self._found, None) if fresh else self._again.popleft()
        if found is None:
            if self._row:
                raise _UnclosedError
            raise StopIteration
        number, line = found
        size_bytes = 1 + len(line or b"")
        self._row.append(found)
        self._row_bytes += size_bytes
        self._read_bytes += size_bytes if fresh else 0
        return self._text(number, line) + "\n"

    def _text(self, number: int, line: bytes | None) -> str:
        """A line as text. Of one that is none, what tells where quoted cells end."""
        reason = None
        text = ""
        if line is None:
            reason = f"a line over {self._limit_bytes} bytes"
        else:
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                reason, text = f"not UTF-8 at byte {error.start}", line.decode("utf-8", "replace")
            if "\0" in text:
                reason, text = reason or "a NUL character", text.replace("\0", "\ufffd")
        if reason and self.fault is None:
            self.fault = reason if number == self.first else f"line {number}: {reason}"
        return text
