"""The rules of C4: lines that are taken out, citation marks, and how many sentences there are. Pure.

After Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer" (JMLR 21),
section 2.2, and the code that made the dataset (`c4_utils.py` of TensorFlow Datasets) where the paper says less.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

C4: Mapping[str, float] = {
    "line_terminal_punctuation": True,
    "line_min_words": 5,
    "line_max_word_length": 1000,  # in the code only
    "line_javascript": True,
    "line_policy": True,
    "citations": True,
    "lorem_ipsum": True,
    "curly_bracket": True,
    "min_sentences": 3,
}
"""The preset. The published paper and the code have 3 sentences and 5 words; an early preprint had 5 and 3."""

_TERMINAL = (".", "!", "?", '"', "\N{RIGHT DOUBLE QUOTATION MARK}")
_ELLIPSIS = "..."
_POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_CITATION = re.compile(r"[ \t]?\[(?:[0-9]*|edit|citation needed)\]")
_CLOSERS = "\"'\N{RIGHT DOUBLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK})]"
# Without a repeat inside a repeat: linear on any text.
_SENTENCE_END = re.compile(rf"[.!?][{re.escape(_CLOSERS)}]*(?=\s|$)|[\u3002\uff01\uff1f]", re.MULTILINE)
_ENDS = (".", "!", "?", "\u3002", "\uff01", "\uff1f")

LineCheck = Callable[[str], bool]


def utf8_bytes(text: str) -> int:
    """Size in UTF-8; a lone surrogate, which UTF-8 cannot hold, counts 3."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def without_citations(text: str) -> str:
    """Take out [1], [], [edit] and [citation needed], each with one blank before it."""
    return _CITATION.sub("", text) if "[" in text else text


class LineRules:
    """Takes out the lines that a rule is against.

    Args:
        active: limits by the names of `Rules`; those that do not begin with `line_` are left alone.
    """

    def __init__(self, active: Mapping[str, float]) -> None:
        self._checks = [(name, make(active[name])) for name, make in _LINE_CHECKS.items() if name in active]

    def apply(self, text: str) -> tuple[str, dict[str, int]]:
        """The text without these lines, and the bytes that each rule took: the first rule that is against a line."""
        if not self._checks:
            return text, {}
        lines, kept = text.split("\n"), []
        taken: dict[str, int] = {}
        for line in lines:
            for name, is_against in self._checks:
                if is_against(line):
                    taken[name] = taken.get(name, 0) + utf8_bytes(line) + 1
                    break
            else:
                kept.append(line)
        if not kept:  # the last line had no line end to lose
            taken[name] -= 1
        return "\n".join(kept), {name: size for name, size in taken.items() if size}


def _without_terminal_punctuation(_: float) -> LineCheck:
    def check(line: str) -> bool:
        line = line.rstrip()
        return not line.endswith(_TERMINAL) or line.endswith(_ELLIPSIS)

    return check


def _longer_word_than(limit: float) -> LineCheck:
    return lambda line: len(line) > limit and max(map(len, line.split()), default=0) > limit


def _mentions(*phrases: str) -> Callable[[float], LineCheck]:
    pattern = re.compile("|".join(map(re.escape, phrases)))
    return lambda _: lambda line: pattern.search(line.lower()) is not None


_LINE_CHECKS: Mapping[str, Callable[[float], LineCheck]] = {
    "line_terminal_punctuation": _without_terminal_punctuation,
    "line_min_words": lambda limit: lambda line: len(line.split()) < limit,
    "line_max_word_length": _longer_word_than,
    "line_javascript": _mentions("javascript"),
    "line_policy": _mentions(*_POLICY),
}


def count_sentences(text: str) -> int:
    """Ends of sentences, and lines that break off without one.

    An end is `.`, `!` or `?`, closing quotation marks and brackets, then white space or the line's end; or a full-width
    mark. Abbreviations count as ends: an upper bound. (The code of C4 asks NLTK's Punkt model for English.)
    """
    open_lines = sum(1 for line in text.split("\n") if _is_open(line.rstrip()))
    return sum(1 for _ in _SENTENCE_END.finditer(text)) + open_lines


def _is_open(line: str) -> bool:
    return bool(line) and not line.rstrip(_CLOSERS).endswith(_ENDS)


def mentions_lorem_ipsum(text: str) -> bool:
    """Placeholder text, in any case."""
    return "lorem ipsum" in text.lower()
