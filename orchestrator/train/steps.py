"""What a step reads, what its ranks tell each other, and what is told of it. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.checkpoint.layout import Progress
from orchestrator.data.load.loader import Seen
from orchestrator.data.load.order import Indices
from orchestrator.objectives.protocol import Batch
from orchestrator.track import metrics
from orchestrator.train.engine.protocol import StepStats


@dataclass(frozen=True)
class StepData:
    """What a step trains on, read ahead of it."""

    batches: list[Batch]
    totals: Mapping[str, int] | None
    """Targets of the whole step by part; None where the ranks have to add them up."""
    samples: Indices
    """Their numbers, over all ranks."""
    seen: dict[str, Seen]
    """How far each part of a mixture is after the step."""
    read_bytes: int
    """What this rank read for it."""


@dataclass(frozen=True)
class Sums:
    """What the ranks have told each other of a step."""

    losses: dict[str, float]
    """By part, a target."""
    tokens: int
    stop: bool
    """Whether a rank wants to stop."""
    save: bool
    """Whether rank 0 wants a checkpoint."""
    rank_times: dict[str, float]
    """Metrics of the ranks' own times; empty between two lines of the log, and of one rank."""

    @property
    def loss(self) -> float:
        """Of the step."""
        return sum(self.losses.values())


@dataclass(frozen=True)
class Made:
    """A step that is made."""

    data: StepData
    sums: Sums
    stats: StepStats
    admitted: bool
    """Whether its update is."""
    rate: float
    """Of learning."""
    step_s: float
    data_wait_s: float
    waited_s: float
    """For the copy of a checkpoint, before the update; no part of the step's time."""


def line_of(progress: Progress, made: Made) -> dict[str, Any]:
    """Metrics of a step, as far as each step has them."""
    return {
        metrics.STEP: progress.step,
        metrics.LOSS: finite(made.sums.loss),
        **_losses_line(made.sums.losses),
        metrics.LEARNING_RATE: made.rate,
        metrics.GRADIENT_NORM: finite(made.stats.grad_norm),
        **({} if made.admitted else {metrics.SKIPPED_UPDATES: 1}),
        **made.stats.extra,
        metrics.TOKENS: progress.tokens,
        metrics.SAMPLES: progress.samples,
        metrics.TOKENS_PER_S: round(made.sums.tokens / made.step_s, 1),
        metrics.STEP_TIME: round(made.step_s, 6),
        metrics.DATA_WAIT: round(made.data_wait_s, 6),
        metrics.DATA_READ: made.data.read_bytes,
        **_parts_line(made.data.seen),
    }


def finite(value: float) -> float | None:
    """The value; null where it is no number, which JSON has no word for."""
    return value if math.isfinite(value) else None


def _losses_line(losses: Mapping[str, float]) -> dict[str, float | None]:
    """The parts of a loss that has several."""
    if len(losses) < 2:
        return {}
    return {metrics.of_part(metrics.PART_LOSS, part): finite(loss) for part, loss in losses.items()}


def _parts_line(seen: Mapping[str, Seen]) -> dict[str, float]:
    """How far each part of a mixture is."""
    line: dict[str, float] = {}
    for name, part in seen.items():
        line[metrics.of_part(metrics.PART_TOKENS, name)] = part.tokens
        line[metrics.of_part(metrics.PART_EPOCH, name)] = round(part.epochs, 4)
    return line
