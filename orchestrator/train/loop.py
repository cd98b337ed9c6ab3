"""The training loop. Knows neither Ray nor DeepSpeed: an engine, samples, and hooks for what leaves the loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from orchestrator.checkpoint.layout import Progress, is_due
from orchestrator.data.load.order import Indices, deal, micro_batches
from orchestrator.data.load.prefetch import Prefetcher
from orchestrator.job_train import Train
from orchestrator.objectives.protocol import Feed
from orchestrator.objectives.scores.result import Scores
from orchestrator.track import metrics
from orchestrator.track.samples import batch_of
from orchestrator.train.engine.protocol import StepStats, TrainEngine
from orchestrator.train.group import TorchGroup
from orchestrator.train.guarding.admission import Admission
from orchestrator.train.guarding.guard import Anomaly, Guard, Past
from orchestrator.train.ranks import RankTimes, times_line
from orchestrator.train.schedule import learning_rate
from orchestrator.train.selection import judged
from orchestrator.train.steps import Made, StepData, Sums, finite, line_of


@dataclass(frozen=True)
class Batching:
    """How a step is cut up; the same numbers on every rank."""

    micro_batch: int
    """Samples of one forward pass of one rank."""
    accumulation: int
    """Forward passes of each rank a step."""


class Hooks(Protocol):
    """What leaves the loop. Called on every rank; `save` is collective, most of the others act on rank 0.

    Who derives from it keeps nothing and asks for nothing, but for what it does anew.
    """

    def consumed(self, step: int, first: int, numbers: Indices) -> None:
        """What this rank has trained on, right before `on_step`: samples [first, first + N) of the step.

        `numbers` [N] int64 are theirs in the order of the data (`Feed.samples`).
        """
        return

    def noticed(self, anomaly: Anomaly) -> None:
        """A step whose numbers went wrong, before its update; what it leads to follows."""
        return

    def on_step(self, line: dict[str, Any]) -> None:
        """A finished step's metrics."""
        return

    def save(self, progress: Progress) -> None:
        """Begin a checkpoint, which is written beside the steps that follow.

        Raises:
            Exception: what the one before has failed with.
        """
        return

    def save_wanted(self) -> bool:
        """Whether a checkpoint is due after this step for another reason than its number. Rank 0's word counts."""
        return False

    def let_change(self) -> float:
        """Called before the weights change: waits for the copy of a checkpoint, and returns for how many seconds."""
        return 0.0

    def finish(self) -> None:
        """Returns when the last checkpoint stands.

        Raises:
            Exception: what it has failed with.
        """
        return

    def stop_requested(self) -> bool:
        """Whether the run is to end after this step. Any rank's word counts."""
        return False


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
    past: Past = field(default_factory=Past)
    """What the guard knows of the steps before."""
    _admission: Admission = field(init=False)
    _ranks: RankTimes | None = field(init=False, default=None)
    """None of one rank: it waits for nobody."""

    def __post_init__(self) -> None:
        t = self.train
        guard = Guard(t.guard, self.past, scaled=t.precision == "fp16")
        self._admission = Admission(self.engine, self.group, guard, self.hooks, t.guard.replicas_every_steps)
        if self.group.num_ranks > 1:
            self._ranks = RankTimes(rank=self.group.rank, num_ranks=self.group.num_ranks)

    def run(self, progress: Progress) -> Progress:
        """Train from the step after `progress` to the last, or until a stop is asked for; the end is saved."""
        with Prefetcher(self._read, first=progress.step + 1, last=self.train.steps) as ahead:
            return self._run(progress, ahead)

    def _run(self, progress: Progress, ahead: Iterator[StepData]) -> Progress:
        stall_s = 0.0
        while not progress.is_end(self.train.steps):
            progress, line, sums = self._step(progress, ahead, stall_s)
            self.hooks.on_step(line)
            began_at = self.clock()
            due = is_due(progress.step, last=self.train.steps, every=self.train.checkpoint.every_steps)
            due = due or progress.ended_early or progress.best_step == progress.step or sums.save
            if due or sums.stop:
                self._admission.before_saving(progress.step)
                self.hooks.save(progress)
            stall_s = self.clock() - began_at if due else 0.0
            if sums.stop:
                break
        self.hooks.finish()
        return progress

    def _step(
        self, before: Progress, ahead: Iterator[StepData], stall_s: float
    ) -> tuple[Progress, dict[str, Any], Sums]:
        """One optimizer step, with evaluation where it is due: progress, its line, and what the ranks agree on.

        `stall_s` is how long a checkpoint has held up the training since the step before.
        """
        step = before.step + 1
        made = self._make(step, ahead)
        ended_at = self.clock()
        scores = self._evaluate(step)
        evaluation_s = self.clock() - ended_at
        done: dict[str, Any] = {
            "step": step,
            "samples": before.samples + self.feed.samples_per_step,
            "tokens": before.tokens + made.sums.tokens,
            "train_loss": finite(made.sums.loss),
            "validation_loss": scores.metrics["loss"] if scores else None,
            "scores": {},
        }
        progress = before.model_copy(update=done)
        first, last = self._share_of(len(made.data.samples))
        self.hooks.consumed(step, first, made.data.samples[first:last])
        line = {**line_of(progress, made), **made.sums.rank_times}
        if stall_s + made.waited_s:
            line[metrics.CHECKPOINT_STALL] = round(stall_s + made.waited_s, 6)
        if scores:
            progress = judged(progress, scores.metrics, self.train.evaluate)
            line |= {metrics.EVALUATION_TIME: round(evaluation_s, 6), **metrics.evaluated(scores.metrics)}
        return progress, line, made.sums

    def _make(self, step: int, ahead: Iterator[StepData]) -> Made:
        """Read a step's samples and train on them."""
        t = self.train
        began_at = self.clock()
        data = next(ahead)
        data_wait_s = self.clock() - began_at
        rate = learning_rate(step, peak=t.optimizer.learning_rate, steps=t.steps, schedule=t.schedule)
        totals = self._totals(data)
        told: list[tuple[Sums, bool, float]] = []

        def admit(stats: StepStats) -> bool:
            if self._ranks is not None:
                self._ranks.add(compute_s=stats.compute_s, data_wait_s=data_wait_s)
            sums = self._add_up(step, data, stats, totals)
            seen = {"loss": sums.loss, "grad_norm": stats.grad_norm}
            admitted = self._admission.admits(step, **seen, samples=data.samples)
            told.append((sums, admitted, self.hooks.let_change()))
            return admitted

        stats = self.engine.step(data.batches, totals=totals, learning_rate=rate, admit=admit)
        sums, admitted, waited_s = told[0]
        step_s = self.clock() - began_at - waited_s
        return Made(data, sums, stats, admitted, rate, step_s=step_s, data_wait_s=data_wait_s, waited_s=waited_s)

    def _totals(self, data: StepData) -> dict[str, float]:
        """Targets of the step by part, over all ranks; a part without one counts as one, and its loss is 0."""
        if data.totals is not None:
            return {part: float(max(1, count)) for part, count in data.totals.items()}
        parts = list(data.batches[0].counts)
        sums = self.group.sum(*(sum(batch.counts[part] for batch in data.batches) for part in parts))
        return {part: max(1.0, count) for part, count in zip(parts, sums, strict=True)}

    def _add_up(self, step: int, data: StepData, stats: StepStats, totals: Mapping[str, float]) -> Sums:
        """Over all ranks, in one exchange. The ranks' own times are a few more numbers in it, where they are due."""
        stop = float(self.hooks.stop_requested())
        save = float(self.group.rank == 0 and self.hooks.save_wanted())
        own_tokens = sum(batch.tokens for batch in data.batches)
        logged = is_due(step, last=self.train.steps, every=self.train.log_every_steps)
        share = self._ranks.share() if self._ranks is not None and logged else []
        tokens, stop, save, *rest = self.group.sum(own_tokens, stop, save, *stats.losses.values(), *share)
        losses = {part: value / totals[part] for part, value in zip(stats.losses, rest, strict=False)}
        times = times_line(rest[len(losses) :]) if share else {}
        return Sums(losses, round(tokens), bool(stop), bool(save), times)

    def _read(self, step: int) -> StepData:
        """This rank's micro-batches of a step. In the reading thread."""
        read_before = self.feed.bytes_read
        batch = batch_of(step, self.past.windows)
        share = deal(self.feed.samples_per_step, self.group.rank, self.group.num_ranks)
        batches = [
            self.feed.read(batch, first, last) for first, last in micro_batches(*share, self.batching.accumulation)
        ]
        return StepData(
            batches=batches,
            totals=self.feed.totals(batch),
            samples=self.feed.samples(batch),
            seen=self.feed.seen(batch),
            read_bytes=self.feed.bytes_read - read_before,
        )

    def _share_of(self, samples: int) -> tuple[int, int]:
        """Which of a step's samples are this rank's: at the end of an epoch there may be fewer than in others."""
        whole = self.feed.samples_per_step
        first, last = deal(whole, self.group.rank, self.group.num_ranks)
        return first * samples // whole, last * samples // whole

    def _evaluate(self, step: int) -> Scores | None:
        if self.evaluate is None or not is_due(step, last=self.train.steps, every=self.train.evaluate.every_steps):
            return None
        return self.evaluate(step)
