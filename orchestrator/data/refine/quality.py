"""Rules that remove a document for what it measures: length, kinds of words and lines, repetition, blocked words. Pure.

The preset `gopher` is Rae et al. 2021, "Scaling Language Models: Methods, Analysis and Insights from Training
Gopher", appendix A.1.1 with table A1; `c4` stands in `c4.py`. A `min_` rule removes what is below its limit, a `max_`
rule what is above: a document at the limit stays. Words are what white space separates; lines and paragraphs are those
with something in them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property, partial

from orchestrator.data.refine import c4
from orchestrator.data.refine.repetition import Ngrams, Shares, duplicates
from orchestrator.errors import JobError
from orchestrator.job_data import Clean, Rules

GOPHER: Mapping[str, float] = {
    "min_words": 50,
    "max_words": 100_000,
    "min_mean_word_length": 3,
    "max_mean_word_length": 10,
    "max_symbols_per_word": 0.1,
    "max_bullet_lines": 0.9,
    "max_ellipsis_lines": 0.3,
    "min_alphabetic_words": 0.8,
    "min_stop_words": 2,
    "max_duplicate_lines": 0.3,
    "max_duplicate_paragraphs": 0.3,
    "max_duplicate_line_characters": 0.2,
    "max_duplicate_paragraph_characters": 0.2,
    "max_top_2gram": 0.20,
    "max_top_3gram": 0.18,
    "max_top_4gram": 0.16,
    "max_duplicate_5gram": 0.15,
    "max_duplicate_6gram": 0.14,
    "max_duplicate_7gram": 0.13,
    "max_duplicate_8gram": 0.12,
    "max_duplicate_9gram": 0.11,
    "max_duplicate_10gram": 0.10,
}
_PRESETS: Mapping[str, Mapping[str, float]] = {"off": {}, "gopher": GOPHER, "c4": c4.C4}

_STOP_WORD = re.compile(r"\b(?:the|be|to|of|and|that|have|with)\b", re.IGNORECASE)
_LETTER = re.compile(r"[^\W\d_]")
_BULLET = re.compile(
    "[\u2022\u2023\u2043\u204c\u204d\u2219\u25a0\u25a1\u25aa\u25ab\u25b6\u25c0\u25cb\u25cf\u25e6\u00b7]|[-*+\u2013\u2014](?=\\s)"
)
_ELLIPSES = ("...", "\N{HORIZONTAL ELLIPSIS}")
_PARAGRAPH_BREAK = re.compile(r"\n\s*\n")
_WORD = re.compile(r"\w+")


def active_rules(settings: Clean) -> dict[str, float]:
    """Limits of the rules that are on, in the order of `Rules`: the job's own, else the preset's; 1 for a switch."""
    preset, active = _PRESETS[settings.quality], {}
    for name in Rules.model_fields:
        if name == "blocked_words":
            continue
        given = getattr(settings.rules, name)
        limit = preset.get(name, "off") if given is None else given
        if limit is not False and limit != "off":
            active[name] = float(limit)
    return active


class Measured:
    """A document's measures, each computed when a rule first asks for it."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def words(self) -> list[str]:
        return self.text.split()

    @cached_property
    def lines(self) -> list[str]:
        return [stripped for line in self.text.split("\n") if (stripped := line.strip())]

    @cached_property
    def mean_word_length(self) -> float:
        return sum(map(len, self.words)) / len(self.words)

    @cached_property
    def line_duplicates(self) -> Shares:
        return duplicates(self.lines)

    @cached_property
    def paragraph_duplicates(self) -> Shares:
        pieces = _PARAGRAPH_BREAK.split(self.text) if "\n" in self.text else [self.text]
        return duplicates([stripped for piece in pieces if (stripped := piece.strip())])

    @cached_property
    def ngrams(self) -> Ngrams:
        return Ngrams(self.words)

    def symbols_per_word(self) -> float:
        """`#`, or ellipses (`...` and the one character), whichever there are more of, by words."""
        ellipses = sum(map(self.text.count, _ELLIPSES))
        return max(self.text.count("#"), ellipses) / len(self.words)

    def bullet_lines(self) -> float:
        return sum(1 for line in self.lines if _BULLET.match(line)) / len(self.lines)

    def ellipsis_lines(self) -> float:
        return sum(1 for line in self.lines if line.endswith(_ELLIPSES)) / len(self.lines)

    def alphabetic_words(self) -> float:
        return sum(1 for word in self.words if word.isalpha() or _LETTER.search(word)) / len(self.words)

    def stop_words(self) -> int:
        """How many different ones of the eight occur."""
        found: set[str] = set()
        for match in _STOP_WORD.finditer(self.text):
            found.add(match.group().lower())
            if len(found) == 8:
                break
        return len(found)


_MEASURES: Mapping[str, Callable[[Measured], float]] = {
    "min_words": lambda d: len(d.words),
    "max_words": lambda d: len(d.words),
    "min_mean_word_length": lambda d: d.mean_word_length,
    "max_mean_word_length": lambda d: d.mean_word_length,
    "max_symbols_per_word": Measured.symbols_per_word,
    "max_bullet_lines": Measured.bullet_lines,
    "max_ellipsis_lines": Measured.ellipsis_lines,
    "min_alphabetic_words": Measured.alphabetic_words,
    "min_stop_words": Measured.stop_words,
    "max_duplicate_lines": lambda d: d.line_duplicates.items,
    "max_duplicate_paragraphs": lambda d: d.paragraph_duplicates.items,
    "max_duplicate_line_characters": lambda d: d.line_duplicates.characters,
    "max_duplicate_paragraph_characters": lambda d: d.paragraph_duplicates.characters,
    **{f"max_top_{n}gram": partial(lambda n, d: d.ngrams.top_share(n), n) for n in (2, 3, 4)},
    **{f"max_duplicate_{n}gram": partial(lambda n, d: d.ngrams.duplicate_share(n), n) for n in range(5, 11)},
    "lorem_ipsum": lambda d: c4.mentions_lorem_ipsum(d.text),
    "curly_bracket": lambda d: "{" in d.text,
    "min_sentences": lambda d: c4.count_sentences(d.text),
}


class DocumentRules:
    """The rules that look at a whole document, in the order of `Rules`.

    Args:
        active: limits by the names of `Rules`; those of lines and citations are left alone.
    """

    def __init__(self, active: Mapping[str, float]) -> None:
        self._rules = [(name, _MEASURES[name], limit) for name, limit in active.items() if name in _MEASURES]

    def verdict(self, text: str) -> str | None:
        """The name of the first rule that removes this document, which must not be blank; None: it stays."""
        document = Measured(text)
        for name, measure, limit in self._rules:
            value = measure(document)
            if value < limit if name.startswith("min_") else value > limit if name.startswith("max_") else value:
                return name
        return None


class BlockedWords:
    """Finds whole words and phrases, whatever their case.

    A word ends where no letter, digit or underscore follows; text without blanks between words has no whole words.

    Raises:
        JobError: a word is blank.
    """

    def __init__(self, words: Iterable[str]) -> None:
        folded = {word.strip().casefold() for word in words}
        if "" in folded:
            raise JobError(
                "data.clean.rules.blocked_words has a blank word, which every document would contain",
                fix="take it out of the list",
            )
        self._single = {word for word in folded if _WORD.fullmatch(word)}
        phrases = sorted(folded - self._single)
        self._phrases = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, phrases))})(?!\w)") if phrases else None

    def occur_in(self, text: str) -> bool:
        """Whether one of them is in the text."""
        if not self._single and self._phrases is None:
            return False
        folded = text.casefold()
        if self._single and not self._single.isdisjoint(_WORD.findall(folded)):
            return True
        return self._phrases is not None and self._phrases.search(folded) is not None
