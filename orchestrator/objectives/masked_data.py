"""The samples of masked language modelling: runs of the flat stream (RoBERTa, Liu et al. 2019). Pairs: `masked_pairs`.

What is hidden is a function of (seed, sample, pass over the text) alone: other tokens each epoch, the same at any world
size, and in scores always the same, whatever the seed of the training.

B samples, T tokens, R of them text, K hidden tokens of a sample at most.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from model.loss import IGNORED_TARGET
from orchestrator.data.load.loader import Seen, TrainLoader
from orchestrator.data.load.masking import Masking
from orchestrator.data.load.next_sentence import PairIds
from orchestrator.data.load.order import Indices
from orchestrator.data.load.stream import Ids, Samples, TokenStream
from orchestrator.objectives.encoder_inputs import IDS, TARGETS
from orchestrator.objectives.masked_lm import MLM, PLACES
from orchestrator.objectives.protocol import Batch, Tensors

SCORED_EPOCH = 0
"""The pass over the text that scores hide tokens as in."""


@dataclass(frozen=True)
class Framing:
    """How a run of the stream becomes a sample."""

    context: int
    """T"""
    frame: PairIds | None
    """[CLS] before and [SEP] behind the text; None: the tokenizer lacks them, and a sample is text alone."""

    @property
    def room(self) -> int:
        """R"""
        return self.context - (2 if self.frame else 0)

    def framed(self, ids_BR: Ids) -> Ids:
        """[B, R] to [B, T]."""
        if self.frame is None:
            return ids_BR
        return np.pad(ids_BR, ((0, 0), (1, 1)), constant_values=((0, 0), (self.frame.cls, self.frame.sep)))


def masked_batch(ids_BT: Ids, sample_ids: Indices, epochs: Indices | int, masking: Masking) -> Batch:
    """Samples of full length with some tokens hidden; without samples (B = 0) a batch that counts nothing."""
    if not len(ids_BT):
        return no_samples(ids_BT.shape[1], masking)
    tensors, hidden = masked_tensors(ids_BT, sample_ids, epochs, masking)
    return Batch(tensors, {MLM: hidden}, ids_BT.size, sample_ids.tolist())


def masked_tensors(ids_BT: Ids, sample_ids: Indices, epochs: Indices | int, masking: Masking) -> tuple[Tensors, int]:
    """`input_ids` [B, T], `masked_positions` and `targets` [B, K], and how many targets there are.

    K is the share of T, whatever is hidden: with one shape for all batches nothing is compiled or planned anew, and
    the device need not be asked how many there are.
    """
    inputs_BT, labels_BT = masking.mask(ids_BT, sample_ids, epochs=epochs)
    hidden_BT = labels_BT != IGNORED_TARGET
    most = _most_hidden(ids_BT.shape[1], masking)
    places_BK = np.argsort(~hidden_BT, axis=1, kind="stable")[:, :most]
    arrays = {IDS: inputs_BT, PLACES: places_BK, TARGETS: np.take_along_axis(labels_BT, places_BK, axis=1)}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}, int(hidden_BT.sum())


def no_samples(context: int, masking: Masking) -> Batch:
    """One sample of `context` tokens without a target."""
    ids_BT = torch.full((1, context), masking.mask_id)
    places_BK = torch.zeros((1, _most_hidden(context, masking)), dtype=torch.int64)
    targets_BK = torch.full_like(places_BK, IGNORED_TARGET)
    return Batch({IDS: ids_BT, PLACES: places_BK, TARGETS: targets_BK}, {MLM: 0}, 0)


def _most_hidden(tokens: int, masking: Masking) -> int:
    return max(1, int(np.rint(tokens * masking.share)))


class MaskedFeed:
    """`Feed` of runs of the stream.

    Args:
        loader: of samples of `framing.room` tokens.
    """

    def __init__(self, loader: TrainLoader, framing: Framing, masking: Masking, *, samples_per_step: int) -> None:
        self._loader, self._framing, self._masking = loader, framing, masking
        self.samples_per_step = samples_per_step

    def read(self, step: int, first: int, last: int) -> Batch:
        """As Feed. What is hidden changes with the place in the endless sequence, which no sample has twice."""
        before = (step - 1) * self.samples_per_step
        places = np.arange(before + first, before + last)
        ids_BR = self._loader.read(step, first, last)[:, :-1]
        samples = self._loader.sample_ids(step, first, last)
        return masked_batch(self._framing.framed(ids_BR), samples, places, self._masking)

    def samples(self, step: int) -> Indices:
        """As Feed."""
        return self._loader.sample_ids(step, 0, self.samples_per_step)

    def totals(self, step: int) -> None:
        """As Feed: how many tokens are hidden depends on the words."""

    @property
    def bytes_read(self) -> int:
        """As Feed."""
        return self._loader.bytes_read

    def seen(self, step: int) -> dict[str, Seen]:
        """As Feed."""
        return self._loader.seen(step)


class MaskedExamples:
    """`Examples` of a split; one shorter than a sample is one short sample."""

    def __init__(self, stream: TokenStream, framing: Framing, masking: Masking) -> None:
        self._samples = Samples(stream, framing.room)
        self._framing, self._masking = framing, masking
        self._short = self._samples.short()
        self.count = self._samples.count if self._short is None else 1

    def read(self, first: int, last: int) -> Batch:
        """As Examples."""
        samples = np.arange(first, last)
        ids_BR = self._samples.read(samples)[:, :-1] if self._short is None else self._short[: last - first]
        return masked_batch(self._framing.framed(ids_BR), samples, SCORED_EPOCH, self._masking)
