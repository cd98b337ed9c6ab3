"""The samples of BERT's recipe (Devlin et al. 2018): pairs of texts, half of which follow on, with tokens hidden.

B pairs, T tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from model.loss import IGNORED_TARGET
from orchestrator.data.load.loader import Seen
from orchestrator.data.load.masking import Masking
from orchestrator.data.load.mixture import Mixture, Part, is_mixture
from orchestrator.data.load.next_sentence import PairBatch, PairIds, SentencePairs
from orchestrator.data.load.order import Indices, SampleOrder
from orchestrator.data.load.stream import TokenStream
from orchestrator.data.shards import open_shard
from orchestrator.errors import DataError
from orchestrator.job_data import Phase
from orchestrator.objectives.encoder_inputs import IDS, MASK, SEGMENTS, padded_length
from orchestrator.objectives.masked_data import SCORED_EPOCH, masked_tensors, no_samples
from orchestrator.objectives.masked_lm import FOLLOWS, MLM, NEXT_SENTENCE
from orchestrator.objectives.protocol import Batch


class Pairs:
    """The pairs of a split, numbered from 0 over groups of shards; both texts of one are of one group.

    Raises:
        DataError: the dataset does not say where sentences end, or a group has fewer than two documents.
    """

    def __init__(self, groups: Sequence[Sequence[Path]], frame: PairIds, masking: Masking, *, context: int) -> None:
        self.stream = TokenStream([path for paths in groups for path in paths])
        self._frame, self._masking, self._context = frame, masking, context
        shards = np.cumsum([0, *map(len, groups)])
        self.first_tokens = self.stream.starts[shards]
        """[groups + 1] where each begins in the stream."""
        self._groups = [_sentence_pairs(paths, context=context, seed=masking.seed) for paths in groups]
        self.counts = np.array([pairs.count for pairs in self._groups], dtype=np.int64)
        self._first_ids = np.concatenate([[0], np.cumsum(self.counts)])

    def read(self, samples: Indices, epochs: Indices) -> Batch:
        """Pairs by number, [B] each; without any a batch that counts nothing."""
        if not len(samples):
            return _no_pairs(self._context, self._masking)
        pairs = self._drawn(samples, epochs)
        width = padded_length(int(pairs.lengths_B.max()), self._context)
        tensors, hidden = masked_tensors(pairs.ids_BT[:, :width], samples, epochs, self._masking)
        arrays = {
            SEGMENTS: pairs.segments_BT[:, :width],
            MASK: np.arange(width) < pairs.lengths_B[:, None],
            FOLLOWS: (~pairs.is_next_B).astype(np.int64),
        }
        tensors |= {name: torch.from_numpy(array) for name, array in arrays.items()}
        counts = {MLM: hidden, NEXT_SENTENCE: len(samples)}
        return Batch(tensors, counts, int(pairs.lengths_B.sum()), samples.tolist())

    def _drawn(self, samples: Indices, epochs: Indices) -> PairBatch:
        """The pairs of all samples, epoch by epoch and group by group, in their order."""
        groups = np.searchsorted(self._first_ids, samples, side="right") - 1
        ids_BT = np.empty((len(samples), self._context), dtype=np.int64)
        whole = PairBatch(
            ids_BT,
            np.empty_like(ids_BT),
            np.empty(len(samples), dtype=np.int64),
            np.empty(len(samples), dtype=np.bool_),
        )
        for group, epoch in np.unique(np.stack([groups, epochs], axis=1), axis=0).tolist():
            at = np.flatnonzero((groups == group) & (epochs == epoch))
            own = self._groups[group].batch(
                self._reader(group), self._frame, samples[at] - self._first_ids[group], epoch=epoch
            )
            whole.ids_BT[at], whole.segments_BT[at] = own.ids_BT, own.segments_BT
            whole.lengths_B[at], whole.is_next_B[at] = own.lengths_B, own.is_next_B
        return whole

    def _reader(self, group: int) -> Callable[[int, int], npt.NDArray[Any]]:
        base = self.first_tokens[group]
        return lambda first, last: self.stream.rows(base + np.array([first]), last - first)[0]


def _sentence_pairs(paths: Sequence[Path], *, context: int, seed: int) -> SentencePairs:
    documents, sentences, before = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
    for path in paths:
        shard = open_shard(path)
        if shard.sentence_ends is None:
            raise DataError(
                "next-sentence pairs need to know where sentences end, and the dataset does not say",
                fix="set data.sentence_ends: true and prepare it again, or set train.masking.next_sentence: false",
            )
        documents.append(shard.document_ends + before)
        sentences.append(shard.sentence_ends + before)
        before += len(shard.tokens)
    return SentencePairs(np.concatenate(documents), np.concatenate(sentences), context=context, seed=seed)


def _no_pairs(context: int, masking: Masking) -> Batch:
    tensors = dict(no_samples(padded_length(1, context), masking).tensors)
    tensors[SEGMENTS] = torch.zeros_like(tensors[IDS])
    tensors[MASK] = torch.ones_like(tensors[IDS], dtype=torch.bool)
    tensors[FOLLOWS] = torch.tensor([IGNORED_TARGET])
    return Batch(tensors, {MLM: 0, NEXT_SENTENCE: 0}, 0)


class PairFeed:
    """`Feed` of pairs of texts.

    Args:
        parts: without weights and without a curriculum they are one stream; else each has pairs of its own.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        frame: PairIds,
        masking: Masking,
        *,
        context: int,
        samples_per_step: int,
        curriculum: Sequence[Phase] = (),
    ) -> None:
        self.samples_per_step = samples_per_step
        self._names = [part.name for part in parts]
        mixed = is_mixture(parts, curriculum)
        paths = [part.shard_paths for part in parts]
        self._pairs = Pairs(
            paths if mixed else [list(itertools.chain.from_iterable(paths))], frame, masking, context=context
        )
        counts = self._pairs.counts
        self._order = SampleOrder(int(counts.sum()), masking.seed)
        self._mixture = (
            Mixture(parts, counts.tolist(), curriculum=curriculum, samples_per_step=samples_per_step, seed=masking.seed)
            if mixed
            else None
        )

    def read(self, step: int, first: int, last: int) -> Batch:
        """As Feed."""
        places = (step - 1) * self.samples_per_step + np.arange(first, last)
        if self._mixture is None:
            return self._pairs.read(self._order.at(places), places // self._order.num_samples)
        found = self._mixture.numbers(places)
        return self._pairs.read(self._mixture.at(places), found.numbers // self._pairs.counts[found.parts])

    def samples(self, step: int) -> Indices:
        """As Feed."""
        places = np.arange((step - 1) * self.samples_per_step, step * self.samples_per_step)
        return (self._mixture or self._order).at(places)

    def totals(self, step: int) -> None:
        """As Feed: how many tokens are hidden depends on the words."""

    @property
    def bytes_read(self) -> int:
        """As Feed."""
        return self._pairs.stream.bytes_read

    def seen(self, step: int) -> dict[str, Seen]:
        """As Feed; an epoch of pairs is about as many tokens as the part has."""
        if self._mixture is None or len(self._names) < 2:
            return {}
        epochs: npt.NDArray[np.float64] = self._mixture.consumed(step * self.samples_per_step) / self._pairs.counts
        tokens = np.rint(epochs * np.diff(self._pairs.first_tokens)).astype(np.int64)
        pairs = zip(self._names, tokens.tolist(), epochs.tolist(), strict=True)
        return {name: Seen(own, passes) for name, own, passes in pairs}


class PairExamples:
    """`Examples` of pairs: those of one epoch."""

    def __init__(self, shard_paths: Sequence[Path], frame: PairIds, masking: Masking, *, context: int) -> None:
        self._pairs = Pairs([shard_paths], frame, masking, context=context)
        self.count = int(self._pairs.counts[0])

    def read(self, first: int, last: int) -> Batch:
        """As Examples."""
        samples = np.arange(first, last)
        return self._pairs.read(samples, np.full_like(samples, SCORED_EPOCH))
