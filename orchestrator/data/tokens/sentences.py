"""Where sentences end, by a simple rule. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Places = npt.NDArray[np.integer[Any]]

_END = re.compile(
    r"""[.!?…](?<![.!?…]{2})[.!?…]*["'”’»)\]]*(?=\s|$)"""  # then white space: 3.14 and example.org stay whole
    r"""|[。！？]+["'”’»)\]」』）]*"""  # Chinese and Japanese have no space between sentences
)


def sentence_ends(text: str) -> list[int]:
    """Character offsets at which sentences end, rising, the last at the end of the text's last visible character.

    A sentence ends after `.`, `!`, `?` or an ellipsis, with the quotes and brackets that close after it, where white
    space follows; after the Chinese and Japanese forms of these, whatever follows; and with its line. Abbreviations
    are not known: `e.g. this` is two. White space after an end belongs to the next sentence. A text without visible
    characters has none.
    """
    ends = {match.end() for match in _END.finditer(text)}
    first = 0
    for line in text.split("\n"):
        if visible := len(line.rstrip()):
            ends.add(first + visible)
        first += len(line) + 1
    return sorted(ends)


def tokens_at(ends: Sequence[int], starts: Places, tokens: Places, total: int) -> npt.NDArray[np.int32]:
    """Sentence ends as token positions: the first token of the first word that begins at or after the end.

    Args:
        ends: rising character offsets.
        starts: the character at which each word begins, rising.
        tokens: the first token of each word.
        total: tokens of the text: where an end lies that no word follows.
    """
    firsts = np.append(tokens, total).astype(np.int32)
    return np.unique(firsts[np.searchsorted(starts, ends, side="left")])
