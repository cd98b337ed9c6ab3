"""The training loop. Knows neither Ray nor DeepSpeed: an engine, samples, and hooks for what leaves the loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator.checkpoint.layout import Progress, is_due
from orchestrator.data.load.loader import Seen, TrainLoader
from orchestrator.data.load.order import deal, micro_batches
from orchestrator.data.load.prefetch import Prefetcher
from orchestrator.data.load.stream import Samples
from orchestrator.errors import TrainError
from orchestrator.job import Train
from orchestrator.track import metrics
from orchestrator.train.engine import StepStats, TrainEngine
from orchestrator.train.evaluate import mean_loss
from orchestrator.train.group import TorchGroup
from orchestrator.train.objectives import MicroBatch, causal_lm
from orchestrator.train.schedule import learning_rate


@dataclass(frozen=True)
class Batching:
    """How a step is cut up; the same numbers on every rank."""

    samples_per_step: int
    micro_batch: int
    accumulation: int


@dataclass(frozen=True)
class _StepData:
    """What a step trains on, read ahead of it."""

    batches: list[MicroBatch]
    seen: dict[str, Seen]
    """How far each part of a mixture is after the step."""
    read_bytes: int
    """What this rank read for it."""


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
    loader: TrainLoader
    validation: Samples | None
    hooks: Hooks
    clock: Callable[[], float] = time.perf_counter

    def run(self, progress: Progress) -> Progress:
        """Train from the step after `progress` to the last, or until a stop is asked for; the end is saved."""
        with Prefetcher(self._read, first=progress.step + 1, last=self.train.steps) as ahead:
            return self._run(progress, ahead)

    def _run(self, progress: Progress, ahead: Iterator[_StepData]) -> Progress:
        stall_s = 0.0
        while progress.step < self.train.steps:
            progress, line, stop = self._step(progress, ahead)
            if stall_s:
                line[metrics.CHECKPOINT_STALL] = round(stall_s, 6)
            self.hooks.on_step(line)
            began_at = self.clock()
            due = is_due(progress.step, last=self.train.steps, every=self.train.checkpoint.every_steps)
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
        stats = self.engine.step(data.batches, learning_rate=rate)
        ended_at = self.clock()
        self._refuse_non_finite(step, stats)
        stop = bool(self.group.sum(float(self.group.rank == 0 and self.hooks.stop_requested()))[0])
        step_tokens = self.batching.samples_per_step * self.loader.context
        progress = Progress(
            step=step,
            samples=before.samples + self.batching.samples_per_step,
            tokens=before.tokens + step_tokens,
            train_loss=stats.loss,
            validation_loss=self._evaluate(step),
        )
        line = {
            metrics.STEP: step,
            metrics.LOSS: stats.loss,
            metrics.LEARNING_RATE: rate,
            metrics.GRADIENT_NORM: stats.grad_norm,
            metrics.TOKENS: progress.tokens,
            metrics.SAMPLES: progress.samples,
            metrics.TOKENS_PER_S: round(step_tokens / (ended_at - began_at), 1),
            metrics.STEP_TIME: round(ended_at - began_at, 6),
            metrics.DATA_WAIT: round(read_at - began_at, 6),
            metrics.DATA_READ: data.read_bytes,
            **_parts_line(data.seen),
        }
        if progress.validation_loss is not None:
            line[metrics.EVAL_LOSS] = progress.validation_loss
            line[metrics.EVAL_PERPLEXITY] = math.exp(min(progress.validation_loss, 700.0))
        return progress, line, stop

    def _read(self, step: int) -> _StepData:
        """This rank's micro-batches of a step, weighted by their share of its target tokens. In the reading thread."""
        samples, context = self.batching.samples_per_step, self.loader.context
        read_before = self.loader.bytes_read
        share = deal(samples, self.group.rank, self.group.num_ranks)
        batches = [
            causal_lm(self.loader.read(step, first, last), target_tokens=samples * context, context=context)
            for first, last in micro_batches(*share, self.batching.accumulation)
        ]
        return _StepData(batches, self.loader.seen(step), self.loader.bytes_read - read_before)

    def _evaluate(self, step: int) -> float | None:
        if self.validation is None or not is_due(step, last=self.train.steps, every=self.train.evaluate.every_steps):
            return None
        return mean_loss(
            self.engine,
            self.validation,
            group=self.group,
            micro_batch=self.batching.micro_batch,
            max_tokens=self.train.evaluate.max_tokens,
        )

    def _refuse_non_finite(self, step: int, stats: StepStats) -> None:
        if not math.isfinite(stats.loss):
            raise TrainError(
                f"the loss of step {step} is {stats.loss}",
                fix="lower train.optimizer.learning_rate or lengthen the warm-up, then run the same command again",
            )


def _parts_line(seen: dict[str, Seen]) -> dict[str, float]:
    line: dict[str, float] = {}
    for name, part in seen.items():
        line[metrics.of_part(metrics.PART_TOKENS, name)] = part.tokens
        line[metrics.of_part(metrics.PART_EPOCH, name)] = round(part.epochs, 4)
    return line
