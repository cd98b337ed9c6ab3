"""Finds private keys: PEM, OpenSSH and PGP blocks, whole, or as far as they go where the text cuts them off. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

_BEGIN = re.compile(r"-----BEGIN (?:[A-Z0-9]{2,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_END = re.compile(r"-----END (?:[A-Z0-9]{2,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_LINE = re.compile(r"(.{0,20000}?)(?:\\r\\n|\\n|\r?\n|\Z)")
"""A line, where the line ends of a string literal count too."""
_HEADER = re.compile(r"(?:Proc-Type|DEK-Info|Version|Comment|Hash|Charset|MessageID): ")
_BASE64 = re.compile(r"[A-Za-z0-9+/=]+")
_DECORATION = " \t\"'+>#*|\\,;"
"""What stands around the lines of a key that is quoted in code, in a mail, or in a configuration."""
_FULL_LINE = 40
"""Characters that a piece of base64 has at least, unless it ends the body. Words are shorter."""


def private_keys(text: str) -> Iterator[tuple[int, int]]:
    """The (start, end) of each private key. A header without a body, as in code that looks for one, is no key."""
    position = 0
    while (begin := _BEGIN.search(text, position)) is not None:
        position = begin.end()
        end = _end_of_key(text, begin.end())
        if end is not None:
            yield begin.start(), end
            position = end


def _end_of_key(text: str, position: int) -> int | None:
    """Where the key ends whose header ends at `position`; None if no base64 follows."""
    body_end: int | None = None
    while position < len(text) and (line := _LINE.match(text, position)) is not None:
        ending = _END.search(text, position, line.end(1))
        stop = ending.start() if ending else line.end(1)
        if not _HEADER.match(text[position : position + 40].lstrip(_DECORATION)):
            body_end, whole = _body(text, position, stop, body_end)
            if not whole:
                return body_end
        if ending is not None:
            return ending.end() if body_end is not None else None
        position = line.end()
    return body_end


def _body(text: str, start: int, stop: int, body_end: int | None) -> tuple[int | None, bool]:
    """Where the base64 of this line ends (or that of the lines before), and whether the line holds nothing else."""
    while True:
        start += len(text[start:stop]) - len(text[start:stop].lstrip(_DECORATION))
        if start == stop:
            return body_end, True
        piece = _BASE64.match(text, start, stop)
        if piece is None or not _is_body(piece[0], first=body_end is None):
            return body_end, False
        body_end = start = piece.end()


def _is_body(piece: str, *, first: bool) -> bool:
    if len(piece) >= _FULL_LINE:
        return True
    return not first and (piece.endswith("=") or piece.startswith("=") or any(c.isdigit() for c in piece))
