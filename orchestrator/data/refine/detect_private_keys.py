"""Finds private keys: PEM, OpenSSH and PGP blocks, whole, or as far as they go where the text cuts them off. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

_BEGIN = re.compile(r"-----BEGIN (?:[A-Z0-9]{2,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_END = re.compile(r"-----END (?:[A-Z0-9]{2,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_BETWEEN = re.compile(r"(?:\\[nrt]|[\s\"'+>#*|\\,;])*")
"""Between pieces: line ends, those of string literals too, and what marks a quotation in code, mails and patches."""
_HEADER = re.compile(r"(?:Proc-Type|DEK-Info|Version|Comment|Hash|Charset|MessageID): [^\n\\]{0,200}")
_BASE64 = re.compile(r"[A-Za-z0-9+/=]+")
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
    while (between := _BETWEEN.match(text, position)) is not None:
        position = between.end()
        if (ending := _END.match(text, position)) is not None:
            return None if body_end is None else ending.end()
        if (header := _HEADER.match(text, position)) is not None:
            position = header.end()
            continue
        piece = _BASE64.match(text, position)
        if piece is None or not _is_body(piece[0], first=body_end is None):
            break
        body_end = position = piece.end()
    return body_end


def _is_body(piece: str, *, first: bool) -> bool:
    if len(piece) >= _FULL_LINE:
        return True
    return not first and (piece[0] == "=" or piece[-1] == "=" or any(c.isdigit() for c in piece))
