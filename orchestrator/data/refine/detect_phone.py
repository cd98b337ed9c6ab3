"""Finds telephone numbers; the one home of the library `phonenumbers`. Pure.

International numbers (`+44 20 7946 0958`) are known everywhere, national ones for one region. The library says which
digits are a number that may be dialled. What it cannot know is whether digits are meant as one, so a national number
must look like it: the usual groups, a trunk prefix, or a word such as `call` in front.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

import phonenumbers

from orchestrator.data.refine.detect_numbers import SEPARATORS, Run

_NANP = 1
"""Country code of the North American Numbering Plan, whose numbers have ten digits in groups of 3, 3 and 4."""
_GAP = rf"(?: ?[{SEPARATORS}]? ?)"
_NANP_GROUPED = re.compile(
    rf"(?<![\w+])(?<![0-9][.,\-/])(?<![0-9]\x20[.\-/]\x20)(?:\+? ?1{_GAP})?"
    rf"(?:\( ?[2-9][0-9]{{2}} ?\){_GAP}[2-9][0-9]{{2}}{_GAP}[0-9]{{4}}"
    rf"|[2-9][0-9]{{2}} ?[{SEPARATORS}] ?[2-9][0-9]{{2}} ?[{SEPARATORS}] ?[0-9]{{4}})(?![\w])(?![,.\-/][0-9])"
)
_EXTENSION = re.compile(r",? ?(?:ext\.?|extension|x\.?) ?[0-9]{1,6}(?![\w])", re.IGNORECASE)
_INTERNATIONAL = re.compile(rf"\(?[0-9](?:[(){SEPARATORS}]{{0,3}}[0-9]){{6,16}}(?![0-9])")
_NATIONAL = re.compile(rf"(?<![\w+])(?<![0-9][.,\-/])\(?[0-9](?:[(){SEPARATORS}]{{0,3}}[0-9]){{6,14}}(?![\w])")
_TRUNK = re.compile(rf"(?<![\w+])(?<![0-9][.,\-/])(?:0[1-9]|\(0)(?:[(){SEPARATORS}]{{0,3}}[0-9]){{6,13}}(?![\w])")
"""A national number with its trunk prefix: seen without a word in front."""
_BARE = re.compile(r"(?<![\w+])(?<![0-9][.,\-/])[0-9]{8,13}(?!\w)(?![.,\-/][0-9])")
_KEYWORD = re.compile(
    r"(?<![\w<])(?:tel|telephone|phone|ph|call|calls|fax|mobile|mob|cell|cellular|pager|text|txt|sms|whatsapp|ring|dial"
    r"|contact|telefon|téléphone|tél|handy|mobil|portable|port|tlf|tfno|teléfono|móvil|telefone|celular|ramal|telefono"
    r"|cellulare|bel|telefoon|тел|телефон|電話|电话|手机)(?!\w)|電話|电话|手机",
    re.IGNORECASE,
)
_IDENTIFIER = re.compile(r"(?:\b|_)id['\"]? ?[:=#]? ?['\"]?\Z|#\Z", re.IGNORECASE)
_KEYWORD_REACH = 32
_LONGEST_RUN = 512
"""Characters of digits and separators beyond which this is a table and no list of telephones."""
_DECIMAL = re.compile(r"[0-9]{4,}\.[0-9]+\Z")
"""`+35236450.6` is no number of Luxembourg; `+1.2025550123` is how domain registries write one."""
_DATE = re.compile(
    r"(?:[0-9]{1,2} ?[./-] ?[0-9]{1,2} ?[./-] ?[0-9]{2,4}|[0-9]{4}[ ./-][0-9]{1,2}[ ./-][0-9]{1,2})(?![0-9])"
)


class Phones:
    """Finds the numbers of one region, and international ones.

    Args:
        region: ISO 3166 code of the country whose numbers are written without a country code.
    """

    def __init__(self, region: str) -> None:
        self._region = region
        self._code = phonenumbers.country_code_for_region(region)

    def find(self, text: str, run: Run) -> Iterator[tuple[int, int]]:
        """The (start, end) of each number in a run, with `+`, an opening bracket and an extension; in order."""
        if run.mixed:
            return
        first = _begin(text, run.start)
        if text[first] == "+" or "+" in text[first : run.start]:
            span = self._international(text, run)
            if span is not None:
                yield first, _with_extension(text, span[1])
                first = span[1]
        if self._code == _NANP:
            yield from self._north_american(text, first, run.end)
        elif self._code:
            yield from self._national(text, first, run.end)

    def _international(self, text: str, run: Run) -> tuple[int, int] | None:
        match = _INTERNATIONAL.match(text, run.start, min(len(text), run.end + 1))
        end = match.end() if match else run.start
        for _ in range(4):  # another number may follow: the longest valid one counts
            digits = _digits(text[run.start : end])
            if len(digits) < 7 or _DECIMAL.match(text, run.start, end):
                return None
            if _is_valid("+" + digits, None) or _is_valid("+" + text[run.start : end], None):
                return run.start, end
            end = _one_group_less(text, run.start, end)
        return None

    def _north_american(self, text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
        for match in _NANP_GROUPED.finditer(text, start, min(len(text), end + 2)):
            if _is_valid(_digits(match[0]), self._region):
                yield match.start(), _with_extension(text, match.end())
        for match in _BARE.finditer(text, start, min(len(text), end + 2)):
            if 10 <= len(match[0]) <= 11 and _is_named(text, match.start()) and _is_valid(match[0], self._region):
                yield match.start(), _with_extension(text, match.end())

    def _national(self, text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
        # A run holds no letters: the word in front, if there is one, stands before it.
        named = _is_named(text, start)
        if end - start > _LONGEST_RUN and not named:
            return
        position, limit = start, min(len(text), end + 1, start + _LONGEST_RUN)
        pattern = _NATIONAL if named else _TRUNK
        while (match := pattern.search(text, position, limit)) is not None:
            stop = self._national_end(text, *match.span(), named=named and match.start() < start + _KEYWORD_REACH)
            if stop is not None:
                yield match.start(), _with_extension(text, stop)
            space = text.find(" ", match.start(), match.end())
            position = stop or (space + 1 if space > 0 else match.end())

    def _national_end(self, text: str, start: int, end: int, *, named: bool) -> int | None:
        """Where a national number ends that begins at `start`; None if there is none."""
        if _DATE.match(text, start, end) or not (named or _TRUNK.match(text, start, end)):
            return None
        while end - start >= 7:
            written = text[start:end]
            if (named or not written.isdigit()) and _is_valid(_digits(written), self._region):
                return end
            end = _one_group_less(text, start, end)
        return None


def _begin(text: str, start: int) -> int:
    """Where `+` or an opening bracket stands in front of a run; its own start without."""
    for back in (1, 2, 3):
        if start >= back and text[start - back] in "+(" and text[start - back + 1 : start].strip(" (") == "":
            start_of_sign = start - back
            if text[start_of_sign] == "(" and start_of_sign and text[start_of_sign - 1] == "+":
                return start_of_sign - 1
            return start_of_sign
    return start


def _one_group_less(text: str, start: int, end: int) -> int:
    """The end of the number without its last group of digits."""
    while end > start and text[end - 1].isdigit():
        end -= 1
    while end > start and not text[end - 1].isdigit():
        end -= 1
    return end


def _is_named(text: str, start: int) -> bool:
    """Whether a word in front, on the same line, says that a telephone number follows."""
    first = max(0, start - _KEYWORD_REACH)
    first = max(first, text.rfind("\n", first, start) + 1)
    return _KEYWORD.search(text, first, start) is not None and _IDENTIFIER.search(text, first, start) is None


def _with_extension(text: str, end: int) -> int:
    match = _EXTENSION.match(text, end, end + 24)
    return match.end() if match else end


def _digits(written: str) -> str:
    return "".join(c for c in written if c.isdigit())


@lru_cache(maxsize=65536)
def _is_valid(digits: str, region: str | None) -> bool:
    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(digits, region))
    except phonenumbers.NumberParseException:
        return False
