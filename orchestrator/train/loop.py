"""The training loop. Knows neither Ray nor DeepSpeed: an engine, samples, and hooks for what leaves the loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from orchestrator.checkpoint.layout import Progress, is_due
from orchestrator.data.load.loader import Seen
from orchestrator.data.load.order import Indices, deal, micro_batches
from orchestrator.data.load.prefetch import Prefetcher
from orchestrator.errors import NumericalError
from orchestrator.job_train import Train
from orchestrator.objectives.protocol import Batch, Feed
from orchestrator.objectives.scores.result import Scores
from orchestrator.track import metrics
from orchestrator.train.engine.protocol import StepStats, TrainEngine
from orchestrator.train.group import TorchGroup
from orchestrator.train.ranks import RankTimes, times_line
from orchestrator.train.schedule import learning_rate
from orchestrator.train.selection import judged

_NAMED = 16


@dataclass(frozen=True)
class Batching:
    """How a step is cut up; the same numbers on every rank."""

    micro_batch: int
    """Samples of one forward pass of one rank."""
    accumulation: int
    """Forward passes of each rank a step."""


@dataclass(frozen=True)
class _StepData:
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
class _Sums:
    """What the ranks have told each other of a step."""

    losses: dict[str, float]
    """By part, a target."""
    tokens: int
    stop: bool
    """Whether rank 0 wants to stop."""
    rank_times: dict[str, float]
    """Metrics of the ranks' own times; empty between two lines of the log, and of one rank."""


class Hooks(Protocol):
    """What leaves the loop. `save` is collective; the others are called on every rank and act on rank 0."""

    def on_step(self, line: dict[str, Any]) -> None:
        """A finished step's metrics."""
        ...

    def save(self, progress: Progress) -> None:
        """Make a checkpoint; returns when it stands."""
        ...

    def stop_requested(self) -> bool:
        """Whether somebody wants the run to end after this step."""
        ...


@dataclass
class Loop:
    """One rank's run through the steps."""

    engine: TrainEngine
    group: TorchGroup
    train: Train
    batching: Batching
    feed: Feed
    evaluate: Callable[[int], Scores] | None
    """Scores on the validation split after a step, on every rank; None where there is none."""
    hooks: Hooks
    clock: Callable[[], float] = time.perf_counter
    _ranks: RankTimes | None = field(init=False, default=None)
    """None of one rank: it waits for nobody."""

    def __post_init__(self) -> None:
        if self.group.num_ranks > 1:
            self._ranks = RankTimes(rank=self.group.rank, num_ranks=self.group.num_ranks)

    def run(self, progress: Progress) -> Progress:
        """Train from the step after `progress` to the last, or until a stop is asked for; the end is saved."""
        with Prefetcher(self._read, first=progress.step + 1, last=self.train.steps) as ahead:
            return self._run(progress, ahead)

    def _run(self, progress: Progress, ahead: Iterator[_StepData]) -> Progress:
        stall_s = 0.0
        while not progress.is_end(self.train.steps):
            progress, line, stop = self._step(progress, ahead)
            if stall_s:
                line[metrics.CHECKPOINT_STALL] = round(stall_s, 6)
            self.hooks.on_step(line)
            began_at = self.clock()
            due = is_due(progress.step, last=self.train.steps, every=self.train.checkpoint.every_steps)
            due = due or progress.ended_early or progress.best_step == progress.step
            if due or stop:
                self.hooks.save(progress)
            stall_s = self.clock() - began_at if due else 0.0
            if stop:
                break
        return progress

    def _step(self, before: Progress, ahead: Iterator[_StepData]) -> tuple[Progress, dict[str, Any], bool]:
        """One optimizer step, with evaluation where it is due: progress, its line, and whether to stop."""
        step, t = before.step + 1, self.train
        began_at = self.clock()
        data = next(ahead)
        read_at = self.clock()
        rate = learning_rate(step, peak=t.optimizer.learning_rate, steps=t.steps, schedule=t.schedule)
        totals = self._totals(data)
        stats = self.engine.step(data.batches, totals=totals, learning_rate=rate)
        if self._ranks is not None:
            self._ranks.add(compute_s=stats.compute_s, data_wait_s=read_at - began_at)
        sums = self._add_up(step, data, stats, totals)
        ended_at = self.clock()
        loss = sum(sums.losses.values())
        self._refuse_non_finite(step, loss, data)
        scores = self._evaluate(step)
        evaluation_s = self.clock() - ended_at
        done: dict[str, Any] = {
            "step": step,
            "samples": before.samples + self.feed.samples_per_step,
            "tokens": before.tokens + sums.tokens,
            "train_loss": loss,
            "validation_loss": scores.metrics["loss"] if scores else None,
            "scores": {},
        }
        progress = before.model_copy(update=done)
        if scores:
            progress = judged(progress, scores.metrics, self.train.evaluate)
        line = {
            metrics.STEP: step,
            metrics.LOSS: loss,
            **_losses_line(sums.losses),
            metrics.LEARNING_RATE: rate,
            metrics.GRADIENT_NORM: stats.grad_norm,
            **stats.extra,
            metrics.TOKENS: progress.tokens,
            metrics.SAMPLES: progress.samples,
            metrics.TOKENS_PER_S: round(sums.tokens / (ended_at - began_at), 1),
            metrics.STEP_TIME: round(ended_at - began_at, 6),
            metrics.DATA_WAIT: round(read_at - began_at, 6),
            **sums.rank_times,
            metrics.DATA_READ: data.read_bytes,
            **_parts_line(data.seen),
            **(
                {metrics.EVALUATION_TIME: round(evaluation_s, 6), **metrics.evaluated(scores.metrics)} if scores else {}
            ),
        }
        return progress, line, sums.stop

    def _totals(self, data: _StepData) -> dict[str, float]:
        """Targets of the step by part, over all ranks; a part without one counts as one, and its loss is 0."""
        if data.totals is not None:
            return {part: float(max(1, count)) for part, count in data.totals.items()}
        parts = list(data.batches[0].counts)
        sums = self.group.sum(*(sum(batch.counts[part] for batch in data.batches) for part in parts))
        return {part: max(1.0, count) for part, count in zip(parts, sums, strict=True)}

    def _add_up(self, step: int, data: _StepData, stats: StepStats, totals: Mapping[str, float]) -> _Sums:
        """Over all ranks, in one exchange. The ranks' own times are a few more numbers in it, where they are due."""
        stop = float(self.group.rank == 0 and self.hooks.stop_requested())
        own_tokens = sum(batch.tokens for batch in data.batches)
        logged = is_due(step, last=self.train.steps, every=self.train.log_every_steps)
        share = self._ranks.share() if self._ranks is not None and logged else []
        tokens, stop, *rest = self.group.sum(own_tokens, stop, *stats.losses.values(), *share)
        losses = {part: value / totals[part] for part, value in zip(stats.losses, rest, strict=False)}
        times = times_line(rest[len(losses) :]) if share else {}
        return _Sums(losses, round(tokens), bool(stop), times)

    def _read(self, step: int) -> _StepData:
        """This rank's micro-batches of a step. In the reading thread."""
        read_before = self.feed.bytes_read
        share = deal(self.feed.samples_per_step, self.group.rank, self.group.num_ranks)
        batches = [
            self.feed.read(step, first, last) for first, last in micro_batches(*share, self.batching.accumulation)
        ]
        return _StepData(
            batches=batches,
            totals=self.feed.totals(step),
            samples=self.feed.samples(step),
            seen=self.feed.seen(step),
            read_bytes=self.feed.bytes_read - read_before,
        )

    def _evaluate(self, step: int) -> Scores | None:
        if self.evaluate is None or not is_due(step, last=self.train.steps, every=self.train.evaluate.every_steps):
            return None
        return self.evaluate(step)

    def _refuse_non_finite(self, step: int, loss: float, data: _StepData) -> None:
        if math.isfinite(loss):
            return
        named = ", ".join(map(str, data.samples[:_NAMED].tolist()))
        more = f" and {len(data.samples) - _NAMED} more" if len(data.samples) > _NAMED else ""
        raise NumericalError(
            f"the loss of step {step} is {loss}; its samples are {named}{more}",
            fix="lower train.optimizer.learning_rate or lengthen the warm-up, then run the same command again; "
            "in step 1 look at the samples and at train.from",
        )


def _losses_line(losses: dict[str, float]) -> dict[str, float]:
    """The parts of a loss that has several."""
    return {metrics.of_part(metrics.PART_LOSS, part): loss for part, loss in losses.items()} if len(losses) > 1 else {}


def _parts_line(seen: dict[str, Seen]) -> dict[str, float]:
    line: dict[str, float] = {}
    for name, part in seen.items():
        line[metrics.of_part(metrics.PART_TOKENS, name)] = part.tokens
        line[metrics.of_part(metrics.PART_EPOCH, name)] = round(part.epochs, 4)
    return line
