"""What the loop knows of an engine: one rank's part of a model in training.

`deepspeed_engine` is ZeRO 0 to 3, `torch_engine` is stage 0 without hooks; another engine (FSDP2, say) is another
implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from orchestrator.objectives.protocol import Batch, Objective, Tensors
from orchestrator.train.engine.pieces import PieceReader, RankState


@dataclass(frozen=True)
class StepStats:
    """What a step tells."""

    losses: dict[str, float]
    """This rank's losses, summed over its targets, by part: the caller adds up the ranks."""
    grad_norm: float
    """Of the whole gradient, before clipping."""
    compute_s: float = field(default=0.0, compare=False)
    """This rank's own passes, up to where it waits for another rank (`train.ranks`)."""
    extra: dict[str, float] = field(default_factory=dict)
    """Statistics that an engine has at hand, by the name of their metric."""


Admit = Callable[[StepStats], bool]
"""Asked once a step, when the gradient is there and nothing is changed yet: whether the update is made."""


@dataclass(frozen=True)
class Evaluated:
    """A batch without gradients or dropout."""

    losses: dict[str, float]
    outputs: Tensors
    """On the CPU, in fp32; empty unless asked for."""


class TrainEngine(Protocol):
    """All ranks call every method, in the same order; all but `state` and `whole` are collective."""

    def step(
        self,
        batches: Sequence[Batch],
        *,
        totals: Mapping[str, float],
        learning_rate: float,
        admit: Admit | None = None,
    ) -> StepStats:
        """Accumulate the gradients of all micro-batches, reduce them over ranks, and update the weights.

        Args:
            totals: targets of the whole step by part, at least 1: the loss is the sum over parts of the summed loss
                by these.
            admit: asked before the update with what is known by then (without `extra`), on all ranks; they must say
                the same. Where it says no, weights and optimizer stay as they were to the bit, and the gradient is
                dropped. What it raises, `step` raises. None: every update is made.
        """
        ...

    def checksum(self) -> int | None:
        """Of the weights that this rank holds and all others should hold alike; None where there are none."""
        ...

    def evaluate(self, batch: Batch, *, outputs: bool) -> Evaluated:
        """Losses of a batch, and its predictions where they are asked for."""
        ...

    def outputs(self, tensors: Tensors) -> Tensors:
        """Predictions in fp32 on the CPU, computed in the trainer's precision."""
        ...

    def beside(self) -> Callable[[Tensors], Tensors] | None:
        """What computes `outputs` in another thread, while this one computes gradients and before it updates weights.

        None where only the training's own thread can: the weights lie in pieces (stage 3) or are averaged, a pass
        changes buffers, or the training's passes are compiled and round in a way of their own.
        """
        ...

    def state(self) -> RankState | None:
        """This rank's weights, optimizer and counters; None where it has nothing that rank 0 has not.

        The tensors are views of what the next update changes: whoever needs them longer copies them.
        """
        ...

    def whole(self, reader: PieceReader) -> dict[str, Tensor]:
        """The whole model in fp32 by the names of its parameters, from what all ranks have written. On rank 0 only.

        In any thread: nothing is read that a step changes.

        Raises:
            OSError: a file is absent or garbled.
        """
        ...

    def load(self, folder: Path) -> None:
        """Restore what the ranks of any engine wrote, on any number of ranks.

        Raises:
            OSError: it cannot be read, or is the state of another model.
        """
        ...


class Learner(nn.Module):
    """A model with its objective: what an engine calls forward on, so that all use of weights is inside of it."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self._objective = objective

    def forward(self, tensors: Tensors, *, losses: bool = True, outputs: bool = False) -> tuple[Tensors, Tensors]:
        """Summed losses by part, and predictions; what is not asked for is empty."""
        return (
            self._objective.losses(self.model, tensors) if losses else {},
            self._objective.outputs(self.model, tensors) if outputs else {},
        )
