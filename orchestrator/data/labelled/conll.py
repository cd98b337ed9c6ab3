"""CoNLL files: a token and its tag a line, sentences apart by blank lines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TextIO

from orchestrator.data.values import Rejected, Row, RowError

_DOCUMENT_MARK = "-DOCSTART-"


def read_conll(lines: TextIO, file: str) -> Iterator[Row | Rejected]:
    """Sentences as rows of `tokens` and `tags`, numbered from 1. Streams.

    The first column is the token, the last its tag. Columns are separated by tabs where a line has one, else by
    spaces. A blank line, or one of white space only, ends a sentence; `-DOCSTART-` lines are left out. A sentence
    with a line of another number of columns than its first, or of one only, is rejected.
    """
    number, sentence, fault = 0, _Sentence(), None
    for at, line in enumerate(lines, 1):
        text = line.rstrip("\r\n")
        if text.strip() and not text.startswith(_DOCUMENT_MARK):
            try:
                sentence.add(text, at)
            except RowError as error:
                fault = fault or str(error)
        elif sentence.tokens or fault:
            number += 1
            yield _finished(sentence, fault, file, number)
            sentence, fault = _Sentence(), None
    if sentence.tokens or fault:
        yield _finished(sentence, fault, file, number + 1)


class _Sentence:
    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.tags: list[str] = []
        self._columns = 0

    def add(self, line: str, at: int) -> None:
        columns = line.rstrip().split("\t") if "\t" in line.strip() else line.split()
        self._columns = self._columns or len(columns)
        if len(columns) < 2:
            raise RowError(f"line {at} has one column; a token and its tag are needed")
        if len(columns) != self._columns:
            raise RowError(f"line {at} has {len(columns)} columns, the lines before it {self._columns}")
        self.tokens.append(columns[0])
        self.tags.append(columns[-1])


def _finished(sentence: _Sentence, fault: str | None, file: str, number: int) -> Row | Rejected:
    if fault:
        return Rejected(file, number, fault)
    return Row(number, {"tokens": sentence.tokens, "tags": sentence.tags})
