"""Random tokens in the shapes of an objective's batches, for a probe of a job whose dataset is not prepared.

Every row is as long as the context. B samples, T tokens, K hidden tokens of a sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from orchestrator.data.dataset import Dataset
from orchestrator.data.load.loader import Seen
from orchestrator.data.load.order import Indices
from orchestrator.job import JobSpec
from orchestrator.objectives import causal_lm, chat, encoder_inputs, masked_lm, pairs
from orchestrator.objectives.encoders import encoder_task
from orchestrator.objectives.preference import DirectPreference, FrozenCopy
from orchestrator.objectives.protocol import Batch, Feed, Objective, Tensors
from orchestrator.plan import Plan
from orchestrator.train.engine.make import make_engine
from orchestrator.train.engine.protocol import TrainEngine
from orchestrator.train.group import TorchGroup
from orchestrator.train.loop import Batching
from orchestrator.train.parts import cut, make_model
from orchestrator.train.weights.lora import adapters_off

_LABELS = ("a", "b")
"""Where the job names none: the data would."""


def assemble_random(
    job: JobSpec, plan: Plan, group: TorchGroup, *, vocab_size: int
) -> tuple[TrainEngine, Feed, Batching]:
    """Engine and samples as `parts.assemble` makes them; weights are drawn, whatever the job begins from."""
    batching = cut(job, group.num_ranks, most=plan.micro_batch)
    labels = list(job.data.labels or _LABELS)
    nothing = Dataset(Path(), {"vocab_size": vocab_size, "labels": labels})
    masking = job.training.masking.model_copy(update={"frequency_bias": False})  # there is nothing to count
    drawn = job.model_copy(update={"train": job.training.model_copy(update={"masking": masking})})
    model, _ = make_model(drawn, nothing, None)
    if job.model.kind == "bert":
        objective: Objective = encoder_task(job, nothing)[0]
    elif job.objective == "preference":
        reference = adapters_off if job.training.lora else FrozenCopy(model)
        objective = DirectPreference(beta=job.training.preference.beta, reference=reference)
    else:
        makes = chat.ChatLM if job.objective == "chat" else causal_lm.CausalLM
        objective = makes(label_smoothing=job.training.label_smoothing)
    engine = make_engine(
        model,
        objective,
        job.training,
        group=group,
        stage=plan.zero_stage,
        micro_batch=batching.micro_batch,
        accumulation=batching.accumulation,
    )
    return engine, RandomFeed(job, vocab_size=vocab_size, labels=len(labels)), batching


class RandomFeed:
    """`Feed` of random tokens."""

    bytes_read = 0

    def __init__(self, job: JobSpec, *, vocab_size: int, labels: int) -> None:
        self.samples_per_step = job.training.batch_tokens // job.model.context
        self._job, self._vocab_size, self._labels = job, vocab_size, labels
        self._random = np.random.default_rng(job.training.seed)

    def read(self, step: int, first: int, last: int) -> Batch:
        """As Feed."""
        count, context = max(1, last - first), self._job.model.context
        if self._job.objective == "causal-lm":
            return causal_lm.next_token_batch(self._random.integers(0, self._vocab_size, (count, context + 1)))
        rows = 2 * count if self._job.objective == "preference" else count
        tensors = {encoder_inputs.IDS: self._below(self._vocab_size, rows, context)}
        targets, counts = self._targets(count, context)
        return Batch(tensors | targets, counts, rows * context)

    def samples(self, step: int) -> Indices:
        """As Feed: they have no numbers."""
        return np.arange(self.samples_per_step)

    def totals(self, step: int) -> Mapping[str, int] | None:
        """As Feed: the batches' counts say it."""
        return None

    def seen(self, step: int) -> dict[str, Seen]:
        """As Feed."""
        return {}

    def _below(self, end: int, *shape: int) -> Tensor:
        return torch.from_numpy(self._random.integers(0, end, shape))

    def _targets(self, count: int, context: int) -> tuple[Tensors, dict[str, int]]:
        """What a batch of the objective has beside its ids, and how many targets that are."""
        match self._job.objective:
            case "chat":
                ones_BT = torch.ones((count, context), dtype=torch.int64)
                places_BT = torch.arange(context).expand(count, -1)
                targets_BT = self._below(self._vocab_size, count, context)
                found = {"targets": targets_BT, "positions": places_BT, "segments": ones_BT}
                return found, {causal_lm.LOSS: count * context}
            case "preference":
                return {"targets": self._below(self._vocab_size, 2 * count, context)}, {pairs.PAIRS: count}
            case "masked-lm":
                return self._hidden(count, context)
            case "token-classification":
                shape: tuple[int, ...] = (count, context)
            case "question-answering":
                shape = (count, 2)
            case _:
                shape = (count,)
        below = context if self._job.objective == "question-answering" else self._labels
        targets = self._below(below, *shape)
        found = {encoder_inputs.TARGETS: targets, **_two_texts(count, context)}
        return found, {encoder_inputs.LOSS: count if shape[-1] == 2 else targets.numel()}

    def _hidden(self, count: int, context: int) -> tuple[Tensors, dict[str, int]]:
        masking = self._job.training.masking
        hidden = max(1, round(masking.share * context))
        places_BK = torch.arange(0, hidden).mul(context // hidden).expand(count, -1)
        targets_BK = self._below(self._vocab_size, count, hidden)
        tensors = {masked_lm.PLACES: places_BK, encoder_inputs.TARGETS: targets_BK}
        counts = {masked_lm.MLM: count * hidden}
        if masking.next_sentence:
            tensors |= {**_two_texts(count, context), masked_lm.FOLLOWS: self._below(2, count)}
            counts[masked_lm.NEXT_SENTENCE] = count
        return tensors, counts


def _two_texts(count: int, context: int) -> Tensors:
    """Segments, the second from the middle on, and that nothing is padding: both [B, T]."""
    segments_BT = (torch.arange(context) >= context // 2).long().expand(count, -1)
    return {
        encoder_inputs.SEGMENTS: segments_BT,
        encoder_inputs.MASK: torch.ones((count, context), dtype=torch.bool),
    }
