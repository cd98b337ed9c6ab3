"""BERT's pairs on the fly: does sentence B follow A? (Devlin et al. 2018, 3.1 and A.2.) Pure.

A sample begins at the sentence that holds a position of the flat stream, T - 3 positions after the sample before, so an
epoch covers the text about once. Half of the pairs are the text that follows, cut in two at a sentence's end; in the
other half B comes from another document. Which, and where it is cut, is a function of (seed, epoch, sample id) alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from orchestrator.data.load.keyed import derive, keys, uniform
from orchestrator.errors import DataError

Positions = npt.NDArray[np.int64]


class Span(NamedTuple):
    """Positions [first, last) of the flat stream."""

    first: int
    last: int


class Pair(NamedTuple):
    """Two pieces of text, each of one document, of T - 3 tokens together at most."""

    a: Span
    b: Span
    is_next: bool


@dataclass(frozen=True)
class PairIds:
    """The special tokens of a pair."""

    cls: int
    sep: int
    pad: int


@dataclass(frozen=True)
class PairBatch:
    """[CLS] A [SEP] B [SEP], padded to T."""

    ids_BT: Positions
    segments_BT: Positions
    """0 up to the first [SEP], 1 up to the second, 0 for padding."""
    lengths_B: Positions
    is_next_B: npt.NDArray[np.bool_]


class SentencePairs:
    """The pairs of a split.

    Args:
        document_ends: position after the last token of each document, rising.
        sentence_ends: likewise of each sentence, document ends among them.
        context: T, at least 5.
        seed: of the choices.

    Raises:
        DataError: fewer than two documents: B could not come from another one.
    """

    def __init__(self, document_ends: Positions, sentence_ends: Positions, *, context: int, seed: int) -> None:
        if len(document_ends) < 2:
            raise DataError(
                f"next-sentence pairs need two documents, but the split has {len(document_ends)}",
                fix="give more documents (data.sources.document_start cuts one file into several)",
            )
        self._sentence_ends = sentence_ends
        self._sentence_starts = np.concatenate([[0], sentence_ends[:-1]])
        self._document_sentences = np.searchsorted(sentence_ends, document_ends, side="left") + 1  # the end of each
        self._room = context - 3
        self._seed = seed
        self.context = context
        self.count = max(1, int(document_ends[-1]) // self._room)
        """Samples in an epoch."""

    def pair(self, epoch: int, sample: int) -> Pair:
        """What a sample of an epoch consists of; O(log n).

        A document of one sentence has no text to follow, nor has a sentence after which no other fits: such a pair is
        never `is_next`, as in BERT's own preparation. Where both parts are too long together, the longer gives way:
        A at its beginning, B at its end.
        """
        draws = uniform(keys(derive(self._seed, "pairs", epoch), [sample]), 3)[0]
        sentence = int(np.searchsorted(self._sentence_ends, sample * self._room, side="right"))
        document = int(np.searchsorted(self._document_sentences, sentence, side="right"))
        first, end = self._sentences_of(document)
        if sentence == end - 1 > first:  # the last sentence alone has none after it
            sentence -= 1
        stop = self._fill(sentence, end, self._room)
        a_end = sentence + 1 + int(draws[1] * max(1, stop - sentence - 1))
        a = self._span(sentence, a_end)
        if stop - sentence >= 2 and draws[0] < 0.5:
            return self._fit(a, self._span(a_end, stop), is_next=True)
        other = int(draws[2] * (len(self._sentence_ends) - (end - first)))
        other += (end - first) if other >= first else 0
        other_end = self._sentences_of(int(np.searchsorted(self._document_sentences, other, side="right")))[1]
        room = max(1, self._room - (a.last - a.first))
        return self._fit(a, self._span(other, self._fill(other, other_end, room)), is_next=False)

    def batch(
        self, read: Callable[[int, int], npt.NDArray[Any]], ids: PairIds, samples: Positions, *, epoch: int
    ) -> PairBatch:
        """The pairs of samples [B] as ids; `read` gives the tokens at positions [first, last)."""
        ids_BT = np.full((len(samples), self.context), ids.pad, dtype=np.int64)
        segments_BT = np.zeros_like(ids_BT)
        lengths_B = np.zeros(len(samples), dtype=np.int64)
        is_next_B = np.zeros(len(samples), dtype=bool)
        for i, sample in enumerate(samples.tolist()):
            a, b, is_next_B[i] = self.pair(epoch, sample)
            second = a.last - a.first + 2
            end = second + b.last - b.first + 1
            ids_BT[i, 0], ids_BT[i, second - 1], ids_BT[i, end - 1] = ids.cls, ids.sep, ids.sep
            ids_BT[i, 1 : second - 1], ids_BT[i, second : end - 1] = read(*a), read(*b)
            segments_BT[i, second:end] = 1
            lengths_B[i] = end
        return PairBatch(ids_BT, segments_BT, lengths_B, is_next_B)

    def _sentences_of(self, document: int) -> tuple[int, int]:
        first = int(self._document_sentences[document - 1]) if document else 0
        return first, int(self._document_sentences[document])

    def _fill(self, sentence: int, end: int, room: int) -> int:
        """The end of the sentences from `sentence` on that fit, one at least."""
        limit = int(self._sentence_starts[sentence]) + room
        fitting = int(np.searchsorted(self._sentence_ends, limit, side="right"))
        return min(end, max(sentence + 1, fitting))

    def _span(self, first: int, end: int) -> Span:
        return Span(int(self._sentence_starts[first]), int(self._sentence_ends[end - 1]))

    def _fit(self, a: Span, b: Span, *, is_next: bool) -> Pair:
        a_tokens, b_tokens = a.last - a.first, b.last - b.first
        half = self._room // 2
        a_room = max(half, self._room - b_tokens)
        a_tokens = min(a_tokens, a_room)
        b_tokens = min(b_tokens, self._room - a_tokens)
        return Pair(Span(a.last - a_tokens, a.last), Span(b.first, b.first + b_tokens), is_next)
