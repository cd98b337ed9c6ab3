"""What an objective is: samples to tensors, tensors to a loss, predictions to scores. Knows no engine and no loop.

Tensors travel by name: `input_ids` [B, T], `token_type_ids`, `attention_mask`, `targets`, ... with rows first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from orchestrator.data.load.loader import Seen
from orchestrator.data.load.order import Indices
from orchestrator.objectives.scores.result import Scores

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Batch:
    """Samples of one forward pass of one rank."""

    tensors: Tensors
    counts: Mapping[str, int]
    """Targets by part of the loss: the sums of `Objective.losses` are divided by these, over the whole step.

    All 0 for a rank that has run out of samples: it still takes part in the collectives of the pass.
    """
    tokens: int
    """Tokens that are no padding, to count throughput."""
    rows: Sequence[Any] = field(default=(), repr=False)
    """What a scorer needs of each row beside the tensors, such as texts."""


class Objective(Protocol):
    """What the model learns. Stateless: the same on every rank."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the loss, by name; the loss is the sum of their means."""
        ...

    def losses(self, model: nn.Module, tensors: Tensors) -> Tensors:
        """By part, the loss summed over its targets: fp32 scalars that gradients flow through."""
        ...

    def outputs(self, model: nn.Module, tensors: Tensors) -> Tensors:
        """Predictions of a batch, among them `logits`; targets may be absent from `tensors`."""
        ...

    def inputs(self, tensors: Tensors) -> Tensors:
        """The part of a batch that the model reads: a probe holds it, and no targets."""
        ...

    def scorer(self) -> Scorer:
        """A fresh account of predictions."""
        ...


class Scorer(Protocol):
    """Predictions of one rank, added up; the states of all ranks make the scores."""

    @property
    def needs_outputs(self) -> bool:
        """Whether `add` wants predictions, or losses are enough."""
        ...

    def add(self, batch: Batch, losses: Mapping[str, float], outputs: Tensors) -> None:
        """Count one batch, with its summed losses and, where needed, its predictions on the CPU."""
        ...

    def state(self) -> Any:
        """What was counted, as plain data that other ranks can be sent."""
        ...

    def result(self, states: Sequence[Any]) -> Scores:
        """The scores of all ranks' states together; `loss` is always among them."""
        ...


class Feed(Protocol):
    """The samples of each step: a function of step and seed, the same at any world size."""

    samples_per_step: int

    def read(self, step: int, first: int, last: int) -> Batch:
        """Samples [first, last) of step 1, 2, ...; where there are none, a batch that counts nothing."""
        ...

    def samples(self, step: int) -> Indices:
        """The numbers of a step's samples, over all ranks: what to look at when something is wrong with them."""
        ...

    def totals(self, step: int) -> Mapping[str, int] | None:
        """Targets of the whole step by part, where they are known without reading it on all ranks."""
        ...

    @property
    def bytes_read(self) -> int:
        """Bytes read from the shards so far."""
        ...

    def seen(self, step: int) -> dict[str, Seen]:
        """How far each part of a mixture is after a step; empty where there is none."""
        ...


class Examples(Protocol):
    """A split in order, for scores."""

    count: int

    def read(self, first: int, last: int) -> Batch:
        """Samples [first, last); where there are none, a batch that counts nothing."""
        ...
