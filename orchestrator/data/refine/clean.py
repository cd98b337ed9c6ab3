"""Cleaning of one document: what is mended in it, and whether a rule removes it. Settings are `Clean` of the job."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from orchestrator.data.refine.c4 import LineRules, utf8_bytes, without_citations
from orchestrator.data.refine.quality import BlockedWords, DocumentRules, active_rules
from orchestrator.job_data import Clean

# What str.splitlines takes for a line's end among the control characters (vertical tab, form feed, the three
# separators, NEL) becomes one: taken out, it would join the last word of a page to the first of the next.
_BREAKS = "\x0b\x0c\x1c-\x1e\x85"
_REST = "\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufdd0-\ufdef\ufeff\ufffe\uffff" + "".join(
    f"{chr(plane << 16 | 0xFFFE)}{chr(plane << 16 | 0xFFFF)}" for plane in range(1, 17)
)
_CONTROL_BREAK = re.compile(f"[{_BREAKS}]")
_CONTROL_REST = re.compile(f"[{_REST}]")
# Whether to look closely. The two above compare each character with 32 of the upper planes; these take a tenth of the
# time, and the second lets through what hardly any text has: all above emoji.
_ASCII_CONTROL = bytes(code for code in range(128) if (code < 32 and chr(code) not in "\t\n\r") or code == 127)
_MAYBE_CONTROL = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufeff\ufffe\uffff\U0001fffe-\U0010ffff]"
)

Mend = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What became of a document."""

    text: str
    """The mended text; as far as it got, where the document is removed."""
    rule: str | None
    """What removed the document: a field of `Rules`, `language`, `html` or `empty`; None: it stays."""
    taken: tuple[tuple[str, int], ...]
    """(rule, UTF-8 bytes taken out) of each rule that changed this document, in order; they add up to what the text
    is shorter by. 0 or below where the text grew, as with some normalisation. Beside fields of `Clean` and `Rules`
    there is `line_ends`."""


class Cleaner:
    """Cleans documents, one at a time, always in the same way: a function of settings and text alone.

    First HTML, line ends, control characters and Unicode, then citations and lines; what is left is measured:
    empty, the rules in the order of `Rules`, blocked words, language.

    Raises:
        JobError: settings that cannot be: a language that is not known, a blank blocked word.
    """

    def __init__(self, settings: Clean) -> None:
        active = active_rules(settings)
        self._menders = _normalisers(settings)
        self._lines = LineRules(active)
        self._rules = DocumentRules(active)
        self._cites = "citations" in active
        self._blocked = BlockedWords(map(self.normalise, settings.rules.blocked_words))
        self._html: Mend | None = None
        self._keeps_language: Callable[[str], bool] | None = None
        if settings.html:
            from orchestrator.data.refine.html import is_html, main_text

            self._html = lambda text: main_text(text) if is_html(text) else text
        if settings.language is not None:
            from orchestrator.data.refine.language import LanguageFilter

            self._keeps_language = LanguageFilter(settings.language).keeps

    def normalise(self, text: str) -> str:
        """Line ends, control characters and Unicode only: what a query needs to be found in cleaned text."""
        for _, mend in self._menders:
            text = mend(text)
        return text

    def clean(self, text: str) -> Cleaned:
        """Mend a document and say whether it stays. Never raises, whatever the text is."""
        taken: list[tuple[str, int]] = []
        if self._html is not None:
            extracted = _noted("html", self._html, text, taken)
            if extracted != text and not extracted.strip():
                return Cleaned(extracted, "html", tuple(taken))
            text = extracted
        for name, mend in self._menders:
            text = _noted(name, mend, text, taken)
        if self._cites:
            text = _noted("citations", without_citations, text, taken)
        text, by_rule = self._lines.apply(text)
        return Cleaned(text, self._removing_rule(text), (*taken, *by_rule.items()))

    def _removing_rule(self, text: str) -> str | None:
        if not text or text.isspace():
            return "empty"
        if rule := self._rules.verdict(text):
            return rule
        if self._blocked.occur_in(text):
            return "blocked_words"
        if self._keeps_language is not None and not self._keeps_language(text):
            return "language"
        return None


def _noted(name: str, mend: Mend, text: str, taken: list[tuple[str, int]]) -> str:
    mended = mend(text)
    if mended != text:  # a comparison by identity where nothing was mended
        taken.append((name, utf8_bytes(text) - utf8_bytes(mended)))
    return mended


def _normalisers(settings: Clean) -> list[tuple[str, Mend]]:
    menders: list[tuple[str, Mend]] = [("line_ends", _with_line_feeds)]
    if settings.control_characters:
        menders.append(("control_characters", _without_control_characters))
    if settings.unicode != "off":
        # After control characters: one between a letter and its accent would keep the two from being composed,
        # and cleaning a second time would find something to do.
        menders.append(("unicode", _normaliser("NFC" if settings.unicode == "nfc" else "NFKC")))
    return menders


def _with_line_feeds(text: str) -> str:
    """CRLF and CR to LF."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _without_control_characters(text: str) -> str:
    """Take out C0 and C1 controls but tab and line end, byte order marks, noncharacters, lone surrogates.

    Joiners (U+200C, U+200D) stay: scripts of India and Persia, and emoji, are written with them.
    """
    if text.isascii():
        if len(text.encode("ascii").translate(None, _ASCII_CONTROL)) == len(text):
            return text
    elif _MAYBE_CONTROL.search(text) is None:
        return text
    return _CONTROL_REST.sub("", _CONTROL_BREAK.sub("\n", text))


def _normaliser(form: Literal["NFC", "NFKC"]) -> Mend:
    def mend(text: str) -> str:
        if text.isascii() or unicodedata.is_normalized(form, text):
            return text
        return unicodedata.normalize(form, text)

    return mend
