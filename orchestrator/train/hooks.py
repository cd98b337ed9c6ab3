"""What leaves the loop of a rank: metrics, scores, checkpoints, events; and the word that ends it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator import identity
from orchestrator.attempts import Attempt
from orchestrator.checkpoint.layout import Progress, is_due
from orchestrator.data.dataset import Dataset
from orchestrator.job import JobSpec
from orchestrator.job_file import environment
from orchestrator.objectives.scores.result import Scores
from orchestrator.runfolder import read_plan, stop_requested
from orchestrator.track import events, metrics
from orchestrator.track.follow import describe
from orchestrator.track.goodput import read_ledger
from orchestrator.track.metric_log import MetricLog, read_metrics, redone_above
from orchestrator.track.progress import say
from orchestrator.track.tracker import NoTracker, Tracker, redact
from orchestrator.track.wandb import RunIdentity, open_tracker
from orchestrator.train.engine.devices import own_device
from orchestrator.train.evaluate import write_scores
from orchestrator.train.parts import Parts
from orchestrator.train.saver import Saver
from orchestrator.train.utilisation import Utilisation, measured_product_flops


@dataclass(frozen=True)
class Began:
    """How an attempt has begun."""

    attempt: Attempt
    resumed_step: int | None
    """The step of the checkpoint that it goes on from; None: from the first."""
    startup: Mapping[str, float]
    """Seconds of each part of its start."""


@dataclass
class Stopwatch:
    """What an attempt has got out of its time so far; by the clock of the wall, as events have it."""

    launched_at: float
    useful_s: float = 0.0
    stepping: bool = False
    """Whether a step is finished."""

    def fraction(self) -> float:
        """The share of useful steps since the launch."""
        return round(self.useful_s / max(self.useful_s, time.time() - self.launched_at, 1e-9), 4)


@dataclass
class RankHooks:
    """What leaves the loop: nothing but checkpoints on any rank but 0."""

    run: Path
    job: JobSpec
    attempt: Attempt
    saver: Saver
    origin: dict[str, str]
    """Dataset and tokenizer, for the checkpoints' manifests."""
    log: MetricLog | None
    tracker: Tracker
    interrupted: Callable[[], bool]
    """Whether this process was told to end."""
    watch: Stopwatch
    utilisation: Utilisation | None = None
    _saved: Progress | None = field(init=False, default=None)

    def on_step(self, line: dict[str, Any]) -> None:
        """See `Hooks`."""
        if self.log is None:
            return
        if self.utilisation is not None:
            line |= self.utilisation.line(line[metrics.TOKENS_PER_S])
        step = line[metrics.STEP]
        logged = is_due(step, last=self.job.training.steps, every=self.job.training.log_every_steps)
        self._account(line)
        if logged:
            line[metrics.GOODPUT] = self.watch.fraction()
        self.log.append(line)
        self.tracker.log(line)
        if logged:
            say(describe(line, self.job.training.steps))

    def _account(self, line: Mapping[str, Any]) -> None:
        step_s = line[metrics.STEP_TIME]
        if not self.watch.stepping:
            began_at = time.time() - step_s - line.get(metrics.EVALUATION_TIME, 0.0)
            facts = {"step": line[metrics.STEP], "attempt": self.attempt.number, "began": events.iso_time(began_at)}
            events.record(self.run, "first-step", **facts)
        if self.watch.stepping or not self.job.training.compile:  # the first step of a compiled network compiles it
            self.watch.useful_s += step_s - line[metrics.DATA_WAIT]
        self.watch.stepping = True

    def on_scores(self, step: int, scores: Scores) -> None:
        """An evaluation's tables, in the run's folder and in the tracker."""
        if self.log is None or not scores.tables:
            return
        self.attempt.check()
        write_scores(self.run, step, scores)
        for name, table in scores.tables.items() if self.job.track.wandb.tables else ():
            self.tracker.table(name, table.columns, table.rows, step=step)

    def save(self, progress: Progress) -> None:
        """See `Hooks`."""
        began_at = time.perf_counter()
        if self.log is not None:
            self.log.sync()
        path = self.saver.save(progress, attempt=self.attempt.number, facts={"run": self.run.name, **self.origin})
        self._saved = progress
        if self.log is not None:
            facts = {"path": path.name, "seconds": round(time.perf_counter() - began_at, 3)}
            events.record(self.run, "checkpoint", step=progress.step, attempt=self.attempt.number, **facts)

    def stop_requested(self) -> bool:
        """See `Hooks`."""
        return stop_requested(self.run) or self.interrupted()

    def how_it_ended(self) -> str:
        """`finished` or `stopped`, after the loop: its end is saved in both cases."""
        return "finished" if self._saved is not None and self._saved.is_end(self.job.training.steps) else "stopped"


@contextlib.contextmanager
def open_hooks(
    run: Path, job: JobSpec, dataset: Dataset, *, parts: Parts, began: Began, interrupted: Callable[[], bool]
) -> Iterator[RankHooks]:
    """The hooks of a rank: on rank 0 with the run's metrics and the tracker, which are closed after the loop."""
    attempt, saver = began.attempt, parts.saver(run, began.attempt)
    origin = {"dataset": dataset.path.name, "tokenizer_sha256": str(dataset.manifest["tokenizer"]["sha256"])}
    watch = Stopwatch(time.time() - sum(began.startup.values()))
    if parts.group.rank != 0:
        yield RankHooks(run, job, attempt, saver, origin, None, NoTracker(), interrupted, watch)
        return
    _record_beginning(run, began, workers=parts.group.num_ranks)
    log = MetricLog(run, attempt=attempt, resumed_step=began.resumed_step or 0)
    tracker, how = _tracker(run, job, dataset), "failed"
    try:
        utilisation = Utilisation(
            flops_per_token=read_plan(run).flops_per_token,
            workers=parts.group.num_ranks,
            stated_flops=job.cluster.worker_flops,
            product_flops=measured_product_flops(job.training, own_device()),
        )
        hooks = RankHooks(run, job, attempt, saver, origin, log, tracker, interrupted, watch, utilisation)
        yield hooks
        how = hooks.how_it_ended()
        tracker.summarize(_summary(run, job))
    finally:
        log.close()
        tracker.close()
        with contextlib.suppress(OSError):  # where no disk is left, what failed before says so
            events.record(run, "ended", attempt=attempt.number, how=how)


def _record_beginning(run: Path, began: Began, *, workers: int) -> None:
    """Before lines are cut off: what their steps took is known for good, even if this attempt is killed right here."""
    began.attempt.check()
    redone = redone_above(run, began.resumed_step or 0)
    events.record(
        run,
        "started" if began.resumed_step is None else "resumed",
        step=began.resumed_step or 0,
        attempt=began.attempt.number,
        workers=workers,
        startup=began.startup,
        recomputed={"steps": redone.steps, "seconds": redone.seconds},
        last_line=None if redone.last_line_at is None else events.iso_time(redone.last_line_at),
    )


def _tracker(run: Path, job: JobSpec, dataset: Dataset) -> Tracker:
    who = RunIdentity(identity.wandb_run_id(run.name), run.name, run)
    tracker = open_tracker(job.track.wandb, who, config=redact(job.model_dump(mode="json")), environ=environment())
    facts = {key: dataset.manifest[key] for key in ("hash", "vocab_size", "sources")}
    tracker.used_dataset(
        dataset.path, {**facts, **{f"{s}_tokens": dataset.tokens(s) for s in dataset.manifest["splits"]}}
    )
    return tracker


def _summary(run: Path, job: JobSpec) -> dict[str, Any]:
    lines = list(read_metrics(run))
    evaluated = [line[metrics.EVAL_LOSS] for line in lines if metrics.EVAL_LOSS in line]
    rate = metrics.typical_tokens_per_s(lines)
    ledger = read_ledger(run, compiled=job.training.compile, now=time.time())
    return {
        "tokens_per_s": rate,
        "best_eval_loss": min(evaluated, default=None),
        "steps": len(lines),
        "goodput": ledger.goodput(),
    }
