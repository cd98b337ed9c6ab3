"""CoNLL files: a token and its tag a line, sentences apart by blank lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from orchestrator.data.values import Rejected, Row, RowError

_DOCUMENT_MARK = "-DOCSTART-"


def read_conll(lines: Iterable[tuple[int, bytes | None]], file: str) -> Iterator[Row | Rejected]:
    """Sentences as rows of `tokens` and `tags`, numbered from 1. Streams.

    `lines` are numbered from 1; null stands for one that is too long. The first column is the token, the last its
    tag. Columns are separated by tabs where a line has one, else by spaces. A blank line, or one of white space only,
    ends a sentence; `-DOCSTART-` lines are left out. A sentence is rejected if one of its lines is too long or not
    UTF-8, has another number of columns than its first, or one only.
    """
    number, sentence, fault = 0, _Sentence(), None
    for at, line in lines:
        try:
            texts = _texts(line, at)
        except RowError as error:
            fault = fault or str(error)
            continue
        for text in texts:
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


def _texts(line: bytes | None, at: int) -> list[str]:
    """A line as text; several, where a carriage return alone ends lines."""
    if line is None:
        raise RowError(f"line {at} is too long")
    try:
        text = line.decode("utf-8-sig" if at == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise RowError(f"line {at} is not UTF-8 at byte {error.start}") from None
    return text.removesuffix("\r").split("\r")


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
