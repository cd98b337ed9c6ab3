"""Predict each next token: pre-training of decoders.

B samples, T tokens, N of them, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.loss import IGNORED_TARGET, projected_cross_entropy
from orchestrator.data.load.loader import Seen, TrainLoader
from orchestrator.data.load.order import Indices
from orchestrator.data.load.stream import Ids, Samples
from orchestrator.objectives.language import LanguageScorer, TokenBytes
from orchestrator.objectives.protocol import Batch, Scorer, Tensors

LOSS = "loss"


class CausalLM:
    """`Objective` of decoders: cross entropy of each token given those before it."""

    parts: tuple[str, ...] = (LOSS,)

    def __init__(self, *, label_smoothing: float = 0.0, token_bytes: TokenBytes | None = None) -> None:
        self._label_smoothing = label_smoothing
        self._token_bytes = token_bytes

    def losses(self, model: nn.Module, tensors: Tensors) -> Tensors:
        """As Objective. The logits of a few rows at a time: [B T, V] never stands in memory."""
        decoder: Any = model
        x_BTD = decoder.hidden(tensors["input_ids"])
        return self._losses(decoder, x_BTD.flatten(0, 1), tensors["targets"].flatten())

    def outputs(self, model: nn.Module, tensors: Tensors) -> Tensors:
        """As Objective: `logits` [B, T, V] of the ids as one text each, as whoever reads an export computes them."""
        return {"logits": model(tensors["input_ids"])}

    def inputs(self, tensors: Tensors) -> Tensors:
        """As Objective: the ids alone."""
        return {"input_ids": tensors["input_ids"]}

    def scorer(self) -> Scorer:
        """As Objective: loss and perplexity a target."""
        return LanguageScorer(LOSS, token_bytes=self._token_bytes)

    def _losses(self, decoder: Any, x_ND: Tensor, targets_N: Tensor) -> Tensors:
        loss = projected_cross_entropy(
            x_ND,
            decoder.projection_weight_VD,
            targets_N,
            bias_V=decoder.projection_bias_V,
            label_smoothing=self._label_smoothing if decoder.training else 0.0,
        )
        return {LOSS: loss}


def next_token_batch(ids: Ids) -> Batch:
    """ids [B, T + 1]: T inputs and T targets a sample."""
    ids_BT1 = torch.from_numpy(ids)
    # Views: widening the ids was the only copy on the way from the shard.
    inputs_BT, targets_BT = ids_BT1[:, :-1], ids_BT1[:, 1:]
    tokens = targets_BT.numel()
    return Batch({"input_ids": inputs_BT, "targets": targets_BT}, {LOSS: tokens}, tokens)


def no_tokens(context: int) -> Batch:
    """One sample without a target."""
    ids_BT = torch.zeros((1, context), dtype=torch.int64)
    return Batch({"input_ids": ids_BT, "targets": torch.full_like(ids_BT, IGNORED_TARGET)}, {LOSS: 0}, 0)


class TokenFeed:
    """`Feed` of a stream of tokens, or of a mixture of streams."""

    def __init__(self, loader: TrainLoader, *, samples_per_step: int) -> None:
        self._loader = loader
        self.samples_per_step = samples_per_step

    def read(self, step: int, first: int, last: int) -> Batch:
        """As Feed."""
        if first == last:
            return no_tokens(self._loader.context)
        return next_token_batch(self._loader.read(step, first, last))

    def samples(self, step: int) -> Indices:
        """As Feed."""
        return self._loader.sample_ids(step, 0, self.samples_per_step)

    def totals(self, step: int) -> Mapping[str, int]:
        """As Feed: every sample has as many targets as its context."""
        return {LOSS: self.samples_per_step * self._loader.context}

    @property
    def bytes_read(self) -> int:
        """As Feed."""
        return self._loader.bytes_read

    def seen(self, step: int) -> dict[str, Seen]:
        """As Feed."""
        return self._loader.seen(step)


class TokenExamples:
    """`Examples` of a split; one shorter than a sample is one short sample."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        self._short = samples.short()
        self.count = samples.count if self._short is None else 1

    def read(self, first: int, last: int) -> Batch:
        """As Examples."""
        if first == last:
            return no_tokens(self._samples.context)
        return next_token_batch(self._samples.read(np.arange(first, last)) if self._short is None else self._short)
