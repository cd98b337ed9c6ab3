"""Text to ids by way of a table of words: several times as fast as the library, and the same ids.

Byte-level BPE and BERT's WordPiece cut a text into words first and then work on each word alone, so a word has the
same ids wherever it stands. Most words of a text are not new. Here texts are cut with Python's `re`, words are looked
up in a table, and only new ones go through the library.

What must agree with the library is where words end. For BERT the cuts are at white space and punctuation that it
always cuts at. For BPE the cut depends on whether the library's Unicode tables call a character a letter, a number
or white space: every character is compared with the library when it is first met (`_Characters`), and a text with one
that differs is cut by the library itself.
"""

from __future__ import annotations

import array
import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

_SLICE_CHARACTERS = 1 << 20
_SAFE_CUT = re.compile(r"(?<=[A-Za-z])(?= [A-Za-z])")
"""Between a letter and a space that a letter follows: every pattern below ends a word there."""
_MAX_WORDS = 400_000
"""Words kept in the table, about 200 bytes each. When it is full, those that were met last go: frequent ones are
met early."""
_BATCH_CHARACTERS = 1 << 20
"""Texts that are cut before their new words are looked at together: a call of the library costs as much as 50 words."""
_MAX_WORD_CHARACTERS = 64

_WHITE = "\\t-\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000"
_SIGNS = r"!-/:-@\[-`{-~…。！？”’»」』）"
"""What BERT cuts off as words of their own: the signs of ASCII, and those that end a sentence."""
_BERT = re.compile(rf"[^ \t\n\r{_SIGNS}]+|[{_SIGNS}]")
_BERT_COVERING = re.compile(_BERT.pattern + r"|[ \t\n\r]+")
_TAIL = "[{S}]+(?![^{S}])|[{S}]+"
_GPT2 = "'(?:[sdmt]|ll|ve|re)| ?(?:[{L}]+|[{N}]+|[^{S}{L}{N}]+)|" + _TAIL
_GPT4 = "'(?i:[sdmt]|ll|ve|re)|[^\\r\\n{L}{N}]?[{L}]+|[{N}]{DIGITS}| ?[^{S}{L}{N}]+[\\r\\n]*|[{S}]*[\\r\\n]+|" + _TAIL
_SPLITS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+": _GPT4.replace("{DIGITS}", ours)
    for digits, ours in ((r"\p{N}{1,3}", "{1,3}"), (r"\p{N}", ""))
}
"""Patterns of a `Split` step that are known here: Llama 3's, and Qwen 2's with one digit a word."""


class Words:
    """Cuts texts where the tokenizer does."""

    def __init__(
        self,
        ascii_only: re.Pattern[str],
        wide: re.Pattern[str],
        *,
        characters: _Characters | None = None,
        covering: re.Pattern[str] | None = None,
    ) -> None:
        self._ascii = ascii_only
        self._wide = wide
        self._characters = characters
        self._covering = covering

    def split(self, text: str) -> list[str]:
        """The words of a text."""
        if text.isascii():
            return self._ascii.findall(text)
        if self._characters and self._characters.differ(text):
            return [text[a:b] for a, b in self._characters.library_spans(text)]
        return self._wide.findall(text)

    def split_all(self, text: str) -> list[str]:
        """As `split`, with the white space between words, if the tokenizer drops it, as words of no tokens."""
        return self._covering.findall(text) if self._covering else self.split(text)


def words_of(parts: dict[str, Any], tokenizer: Any) -> Words | None:
    """How this tokenizer cuts texts; None where words cannot be told beforehand, or do not stand alone.

    Args:
        parts: its parsed `tokenizer.json`.
        tokenizer: the same, loaded.
    """
    if any(not token["special"] for token in parts.get("added_tokens") or []):
        return None  # ordinary added tokens are found anywhere in a text, before it is cut
    if _is_bert(parts):
        return Words(_BERT, _BERT, covering=_BERT_COVERING)
    template = _bpe_template(parts)
    if template is None:
        return None
    letters, numbers = _classes()
    wide = re.compile(template.replace("{S}", _WHITE).replace("{L}", letters).replace("{N}", numbers))
    small = re.compile(template.replace("{S}", "\\t-\\r ").replace("{L}", "A-Za-z").replace("{N}", "0-9"))
    characters = _Characters(tokenizer.pre_tokenizer, wide)
    everything = "".join(map(chr, range(128)))
    return None if characters.differ(everything) else Words(small, wide, characters=characters)


def _is_bert(parts: dict[str, Any]) -> bool:
    normalizer, cutter = parts.get("normalizer"), parts.get("pre_tokenizer")
    return (
        parts["model"].get("type") == "WordPiece"
        and (cutter or {}).get("type") == "BertPreTokenizer"
        and (normalizer is None or (normalizer["type"] == "BertNormalizer" and normalizer["clean_text"]))
    )


def _bpe_template(parts: dict[str, Any]) -> str | None:
    model, cutter = parts["model"], parts.get("pre_tokenizer") or {}
    if model.get("type") != "BPE" or model.get("dropout") or parts.get("normalizer"):
        return None
    steps = cutter.get("pretokenizers", []) if cutter.get("type") == "Sequence" else [cutter]
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    if len(steps) == 1:
        return _GPT2 if steps[0].get("use_regex", True) else None
    first = steps[0]
    known = first.get("type") == "Split" and first.get("behavior") == "Isolated" and not first.get("invert")
    if len(steps) > 2 or not known or steps[-1].get("use_regex", True):
        return None
    return _SPLITS.get(first["pattern"].get("Regex", ""))


@cache
def _classes() -> tuple[str, str]:
    """Letters and numbers of the first 65,536 code points, as the inside of a character class.

    Further planes would make the class many times as slow; letters there count as different from the library's.
    """
    kinds = [unicodedata.category(chr(code))[0] for code in range(1 << 16)]
    return _ranges(kinds, "L"), _ranges(kinds, "N")


def _ranges(kinds: list[str], wanted: str) -> str:
    inside = np.flatnonzero(np.diff(np.array([False, *(kind == wanted for kind in kinds), False])))
    return "".join(f"\\u{first:04x}-\\u{end - 1:04x}" for first, end in inside.reshape(-1, 2).tolist())


class _Characters:
    """Which characters the library and our pattern see alike, found out one by one as they are met."""

    def __init__(self, cutter: Any, pattern: re.Pattern[str]) -> None:
        self._cutter = cutter
        self._pattern = pattern
        self._state = np.zeros(0x110000, dtype=np.uint8)  # 0 not met yet, 1 alike, 2 different
        self._state[0xD800:0xE000] = 2  # lone surrogates: the library says what it thinks of them

    def differ(self, text: str) -> bool:
        """Whether the text holds a character that the two see differently."""
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        states = self._state[codes]
        if not states.all():
            for code in np.unique(codes[states == 0]).tolist():
                self._state[code] = 1 if self._alike(chr(code)) else 2
            states = self._state[codes]
        return bool((states == 2).any())

    def library_spans(self, text: str) -> list[tuple[int, int]]:
        return [span for _, span in self._cutter.pre_tokenize_str(text)]

    def _alike(self, c: str) -> bool:
        """Beside a letter, a digit, a sign and an apostrophe a character shows its class: letters join only the
        first, numbers only the second, signs only the third, white space none."""
        probe = f"a{c}a 0{c}0 !{c}! '{c} 'l{c} 'v{c} 'r{c} {c}\n{c} {c}{c}a \r{c}"
        return self.library_spans(probe) == [match.span() for match in self._pattern.finditer(probe)]


class WordTable:
    """Words to ids, the ids kept as bytes: joined they are the ids of a text, without a Python number between."""

    def __init__(self, encode: Callable[[list[str]], list[list[int]]], words: Words, item_bytes: int) -> None:
        self._encode = encode
        self._words = words
        self._item_bytes = item_bytes
        self._code = {2: "H", 4: "I"}[item_bytes]
        self._table: dict[str, bytes] = {}
        self._long: list[str] = []

    def encode(self, texts: Sequence[str]) -> list[bytes]:
        """The ids of each text, one after another."""
        found: list[bytes] = []
        held: list[list[str]] = []
        held_characters = 0
        for text in texts:
            if len(text) > _SLICE_CHARACTERS:
                found += self._look_up(held)
                held, held_characters = [], 0
                found.append(b"".join([self._look_up([self._words.split(piece)])[0] for piece in _slices(text)]))
                continue
            held.append(self._words.split(text))
            held_characters += len(text)
            if held_characters > _BATCH_CHARACTERS:
                found += self._look_up(held)
                held, held_characters = [], 0
        return found + self._look_up(held)

    def encode_with_starts(self, text: str) -> tuple[bytes, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Also where each word begins: the character in the text, and the token."""
        words = self._words.split_all(text)
        self._learn(words)
        found = list(map(self._table.__getitem__, words))
        self._forget()
        return b"".join(found), _starts(words), _starts(found) // self._item_bytes

    def _look_up(self, texts: list[list[str]]) -> list[bytes]:
        """The ids of texts that are cut into words."""
        self._learn(itertools.chain.from_iterable(texts))
        ids = [b"".join(map(self._table.__getitem__, words)) for words in texts]
        self._forget()
        return ids

    def _learn(self, words: Iterable[str]) -> None:
        new = list(set(words).difference(self._table))
        encoded = [array.array(self._code, ids).tobytes() for ids in self._encode(new)]
        self._table.update(zip(new, encoded, strict=True))
        self._long += [word for word in new if len(word) > _MAX_WORD_CHARACTERS]

    def _forget(self) -> None:
        """Keep the table small: no long words, which hardly come again, and not too many."""
        for word in self._long:
            del self._table[word]
        self._long.clear()
        if len(self._table) > _MAX_WORDS:
            for word in list(itertools.islice(self._table, _MAX_WORDS // 2, None)):
                del self._table[word]


def _starts(parts: Sequence[str] | Sequence[bytes]) -> npt.NDArray[np.int64]:
    lengths = np.fromiter(map(len, parts), dtype=np.int64, count=len(parts))
    return np.cumsum(lengths) - lengths


def _slices(text: str) -> Iterator[str]:
    """A long text in parts, so that its words need not all be held at once."""
    first = 0
    while len(text) - first > 2 * _SLICE_CHARACTERS and (cut := _SAFE_CUT.search(text, first + _SLICE_CHARACTERS)):
        yield text[first : cut.start()]
        first = cut.start()
    yield text[first:] if first else text
