"""Text as a sequence of 64-bit word hashes, and the hashes of all runs of n words. Pure.

Deduplication and decontamination look at words only: case, punctuation and white space never tell two texts apart. A
word is a run of letters, digits, marks and underscores of the text after NFC and case folding. In scripts that put no
space between words (Han, kana, Thai, Lao, Khmer, Myanmar) each such character is a word; Hangul is written with spaces
and stays in words.

Hashes are the same in every process and on every machine, so they may be stored and compared between tasks. A change
to this file changes what a dataset holds.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import regex
import xxhash

Hashes = npt.NDArray[np.uint64]

# `regex`, not `re`: its \w holds combining marks, without which words of Hindi or Tamil fall to pieces.
_WORD = regex.compile(r"\w+")
# Blocks of the scripts without spaces; that they hold punctuation too does no harm.
_SINGLES = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\ua9e0-\ua9ff\uaa60-\uaa7f\uf900-\ufaff\uff66-\uff9f\U00016fe0-\U00016fff\U0001aff0-\U0001b16f\U00020000-\U0003ffff]+"
)
_WORD_BYTES = frozenset(b"0123456789_abcdefghijklmnopqrstuvwxyz")
_FOLD_AND_CUT = bytes(c if c >= 128 or c in _WORD_BYTES else 32 for c in bytes(range(256)).lower())
"""For `bytes.translate`: ASCII letters lowered, ASCII separators to spaces; the bytes of longer characters stay."""
_MEMO_PIECES = 1 << 18
"""Entries of the memo, about 40 MB; it is emptied when full."""
_MEMO_BYTES = 64
"""Longer pieces are rare and unlikely to come again: they are not kept."""
_PIECE_WORDS = 1 << 16
_BASE = 0x9E3779B97F4A7C15
"""Base of the polynomial; odd, so that it has an inverse modulo 2^64."""


def split_words(text: str) -> list[str]:
    """The words of a text, in order, folded."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    words: list[str] = _WORD.findall(_SINGLES.sub(_spaced, folded))
    return words


def word_hashes(text: str) -> Hashes:
    """The hash of each word of a text, in order: XXH3 (64 bits, seed 0) of its UTF-8 bytes. Read-only.

    The same as hashing what `split_words` gives, but the text is cut at ASCII separators first, which no word crosses;
    what stands between is split and hashed only when it is new. Memory: 8 bytes a word.
    """
    if not text.isascii():
        text = _SINGLES.sub(_spaced, unicodedata.normalize("NFC", text))
    pieces = text.encode("utf-8", "surrogatepass").translate(_FOLD_AND_CUT).split()
    return np.frombuffer(b"".join(map(_memo.__getitem__, pieces)), np.uint64)


def run_hashes(words: Hashes, length: int) -> Hashes:
    """The hash of each run of `length` words, in order: as many as there are places, none for a shorter text.

    A polynomial of the words' hashes modulo 2^64, so that order counts, then the finaliser of splitmix64. Taken as
    differences of running sums, so a run costs the same whatever its length.
    """
    count = words.size - length + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    step = max(_PIECE_WORDS, length)
    starts = range(0, count, step)
    pieces = [_runs_of_piece(words[at : min(at + step, count) + length - 1], length) for at in starts]
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def mix(values: Hashes) -> Hashes:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014), in place: each input bit moves half of the output's."""
    shifted = values >> np.uint64(30)
    values ^= shifted
    values *= np.uint64(0xBF58476D1CE4E5B9)
    np.right_shift(values, np.uint64(27), out=shifted)
    values ^= shifted
    values *= np.uint64(0x94D049BB133111EB)
    np.right_shift(values, np.uint64(31), out=shifted)
    values ^= shifted
    return values


def _runs_of_piece(words: Hashes, length: int) -> Hashes:
    powers, inverses = _powers(1 << (words.size - 1).bit_length())
    sums = np.zeros(words.size + 1, np.uint64)
    np.cumsum(words * powers[: words.size], out=sums[1:])
    runs = sums[length:] - sums[:-length]
    runs *= inverses[: runs.size]
    return mix(runs)


@lru_cache(maxsize=20)
def _powers(size: int) -> tuple[Hashes, Hashes]:
    """The first powers of the base and of its inverse modulo 2^64."""
    inverse = pow(_BASE, -1, 1 << 64)
    base_and_inverse = np.full((2, size), [[_BASE], [inverse]], np.uint64)
    base_and_inverse[:, 0] = 1
    powers = np.cumprod(base_and_inverse, axis=1)
    return powers[0], powers[1]


class _Memo(dict[bytes, bytes]):
    """What stands between ASCII separators -> the hashes of its words, 8 bytes each, in this machine's byte order."""

    def __missing__(self, piece: bytes) -> bytes:
        words = split_words(piece.decode("utf-8", "surrogatepass"))
        values = b"".join(xxhash.xxh3_64_intdigest(w.encode()).to_bytes(8, sys.byteorder) for w in words)
        if len(piece) <= _MEMO_BYTES:
            if len(self) >= _MEMO_PIECES:
                self.clear()
            self[piece] = values
        return values


_memo = _Memo()


def _spaced(found: re.Match[str]) -> str:
    return f" {' '.join(found[0])} "
