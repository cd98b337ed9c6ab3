"""Whether a document shares text with an evaluation set: an index of the set's runs of n words. Pure, but for its file.

As GPT-3 did it (Brown et al. 2020, appendix C): runs of 13 words, of shorter examples the whole, down to 8 words. Here
a document that shares one run is removed as a whole. Shorter examples ("yes", "the United States") would match by
chance, so of those only a document that is the same, word by word, counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from orchestrator.data.refine.words import Hashes, run_hashes, word_hashes
from orchestrator.errors import DataError

MIN_RUN_WORDS = 8
"""Brown et al. 2020: "the minimum for N is 8", so that short runs in common use do not count."""
_FORMAT = 1
_WHOLE = 0
"""In the file: the length under which whole short documents stand."""


class SortedHashes:
    """A set of hashes: sorted, each once, with a filter in front.

    The filter, 8 to 16 bits a hash, is small enough for a processor's cache. It turns away most of the hashes that are
    not in the set before they are searched for, which takes some 20 jumps through memory each.
    """

    def __init__(self, hashes: Hashes) -> None:
        self.hashes = hashes
        bits = hashes.size.bit_length() + 3
        self._shift = np.uint64(64 - bits)
        marks = np.zeros(1 << bits, np.bool_)
        marks[hashes >> self._shift] = True
        self._filter = np.packbits(marks, bitorder="little")

    def __len__(self) -> int:
        return self.hashes.size

    def has_any(self, asked: Hashes) -> bool:
        """Whether one of these, in any order, is in the set."""
        place = asked >> self._shift
        bit = (place & np.uint64(7)).astype(np.uint8)
        maybe = asked[((self._filter[(place >> np.uint64(3)).view(np.int64)] >> bit) & 1).view(np.bool_)]
        if not maybe.size or not self.hashes.size:
            return False
        at = np.searchsorted(self.hashes, maybe)
        at[at == self.hashes.size] = 0
        return bool((self.hashes[at] == maybe).any())


@dataclass(frozen=True)
class NgramIndex:
    """The runs of words of evaluation documents."""

    ngram_words: int
    runs: Mapping[int, SortedHashes]
    """Words of a run -> the runs of that length."""
    whole: SortedHashes
    """All the words of documents too short for a run."""

    @classmethod
    def build(cls, texts: Iterable[str], ngram_words: int) -> NgramIndex:
        """Index evaluation documents, or their single fields. Texts without words are left out."""
        parts: dict[int, list[Hashes]] = {}
        shortest = min(MIN_RUN_WORDS, ngram_words)
        for text in texts:
            words = word_hashes(text)
            length = min(ngram_words, words.size)
            if length:
                parts.setdefault(length if length >= shortest else _WHOLE, []).append(run_hashes(words, length))
        tables = {length: np.unique(np.concatenate(hashes)) for length, hashes in sorted(parts.items())}
        return cls._of(ngram_words, {_WHOLE: np.empty(0, np.uint64), **tables})

    @classmethod
    def _of(cls, ngram_words: int, tables: Mapping[int, Hashes]) -> NgramIndex:
        sets = {length: SortedHashes(hashes) for length, hashes in tables.items()}
        return cls(ngram_words, {length: one for length, one in sets.items() if length != _WHOLE}, sets[_WHOLE])

    def __len__(self) -> int:
        return len(self.whole) + sum(map(len, self.runs.values()))

    def contains(self, text: str) -> bool:
        """Whether a document shares a run of words with the evaluation documents, or is one of the short ones."""
        return self.contains_words(word_hashes(text))

    def contains_words(self, words: Hashes) -> bool:
        """The same, of a document whose words are hashed already (`words.word_hashes`)."""
        if 0 < words.size < min(MIN_RUN_WORDS, self.ngram_words):
            return self.whole.has_any(run_hashes(words, words.size))
        return any(one.has_any(run_hashes(words, length)) for length, one in self.runs.items())

    def save(self, path: Path) -> None:
        """Write one `.npy` file, which `load` maps into memory."""
        tables = {length: one.hashes for length, one in {_WHOLE: self.whole, **self.runs}.items()}
        sizes = [number for length, hashes in tables.items() for number in (length, hashes.size)]
        head = np.array([_FORMAT, self.ngram_words, len(tables), *sizes], np.uint64)
        with path.open("wb") as file:  # numpy would append an ending to a bare name
            np.save(file, np.concatenate([head, *tables.values()]), allow_pickle=False)

    @classmethod
    def load(cls, path: Path) -> NgramIndex:
        """Map an index from a file: processes of one machine share its memory.

        Raises:
            DataError: the file is not what `save` writes.
        """
        try:
            data = np.lib.format.open_memmap(path, mode="r")
            return cls._of(*_parse(data))
        except (ValueError, IndexError, EOFError) as error:
            raise DataError(
                f"{path} is not an index of evaluation text ({error})",
                fix="delete it and run the same command again: it is built from the sets in data.deduplicate.against",
            ) from error


def _parse(data: Hashes) -> tuple[int, dict[int, Hashes]]:
    """What `save` wrote: the words of an n-gram, and the hashes by length."""
    if data.dtype != np.uint64 or data.ndim != 1:
        raise ValueError(f"an array of {data.dtype} with {data.ndim} dimensions")
    if int(data[0]) != _FORMAT:
        raise ValueError(f"format {int(data[0])}, not {_FORMAT}")
    at = 3 + 2 * int(data[2])
    head = [int(number) for number in data[3:at]]
    tables: dict[int, Hashes] = {}
    for length, size in zip(head[::2], head[1::2], strict=True):
        tables[length] = data[at : at + size]
        at += size
    if at != data.size or _WHOLE not in tables:
        raise ValueError(f"{data.size} numbers, where its head says {at}")
    return int(data[1]), tables
