"""What leaves the loop of a rank: metrics, scores, checkpoints, events; and the word that ends it."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator import identity
from orchestrator.attempts import Attempt
from orchestrator.checkpoint.interval import Pacer, pacer_of
from orchestrator.checkpoint.layout import Progress, is_due
from orchestrator.data.dataset import Dataset
from orchestrator.data.load.order import Indices
from orchestrator.job import JobSpec
from orchestrator.job_file import environment
from orchestrator.objectives.scores.result import Scores
from orchestrator.runfolder import read_plan, stop_requested
from orchestrator.track import events, metrics
from orchestrator.track.events import read_events
from orchestrator.track.follow import describe
from orchestrator.track.goodput import read_ledger
from orchestrator.track.metric_log import MetricLog, Redone, read_metrics, redone_above
from orchestrator.track.progress import say
from orchestrator.track.samples import SampleLog, read_windows
from orchestrator.track.tracker import NoTracker, Tracker, redact
from orchestrator.track.wandb import RunIdentity, open_tracker
from orchestrator.train.engine.devices import own_device
from orchestrator.train.evaluate import write_scores
from orchestrator.train.guarding.guard import Anomaly
from orchestrator.train.parts import Parts, retention_of
from orchestrator.train.saving.offsite import Copier
from orchestrator.train.saving.saver import Saved, Saver
from orchestrator.train.utilisation import Utilisation, measured_product_flops

_ALERT_EVERY_S = 600.0
_LAST_CHECKPOINT_S = 30.0
"""How long a checkpoint that is being written may take to stand when something else has failed."""

_SAME_LOSS = 0.02
"""How far the loss of a step that is done again may be from what it was, by that where it is above 1."""


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
    samples: SampleLog
    utilisation: Utilisation | None = None
    pacer: Pacer | None = None
    """Of checkpoints, on rank 0 where time decides."""
    copier: Copier | None = None
    """On rank 0 where checkpoints are copied."""
    loss_before: float | None = None
    """Of the attempt's first step, as the attempt before had it."""
    _saved: Progress | None = field(init=False, default=None)
    _alerted_at: float = field(init=False, default=-math.inf)

    def consumed(self, step: int, first: int, numbers: Indices) -> None:
        """See `Hooks`."""
        self.samples.append(step, first, numbers)

    def noticed(self, anomaly: Anomaly) -> None:
        """See `Hooks`. W&B is alerted where something follows, every ten minutes at most."""
        if self.log is None:
            return
        events.record(self.run, "anomaly", attempt=self.attempt.number, **anomaly.facts())
        say(anomaly.line)
        now = time.monotonic()
        if anomaly.verdict.action in ("skip", "rollback") and now - self._alerted_at > _ALERT_EVERY_S:
            self._alerted_at = now
            self.tracker.alert(f"{self.run.name}: {anomaly.verdict.kind}, {anomaly.verdict.action}", anomaly.line)

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
            if self.loss_before is not None and line[metrics.LOSS] is not None:
                facts |= {"loss": line[metrics.LOSS], "loss_before": self.loss_before}
                self._compare(line, self.loss_before)
            events.record(self.run, "first-step", **facts)
        if self.watch.stepping or not self.job.training.compile:  # the first step of a compiled network compiles it
            self.watch.useful_s += step_s - line[metrics.DATA_WAIT]
        self.watch.stepping = True

    def _compare(self, line: Mapping[str, Any], before: float) -> None:
        """The same weights and the same batch give the same loss, up to rounding and to other ranks' dropout."""
        if not abs(line[metrics.LOSS] - before) <= _SAME_LOSS * max(1.0, abs(before)):
            say(
                f"step {line[metrics.STEP]} has the loss {line[metrics.LOSS]:.4f}, and had {before:.4f} before it was "
                "done again: look at the checkpoint and at what has changed since"
            )

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
        facts = {"run": self.run.name, **self.origin}
        if self.pacer is not None:
            self.pacer.begins(time.monotonic())
        self.saver.save(progress, attempt=self.attempt.number, facts=facts, before=self._sync, after=self._stands)
        self._saved = progress

    def save_wanted(self) -> bool:
        """See `Hooks`."""
        return self.pacer is not None and self.pacer.is_due(time.monotonic())

    def let_change(self) -> float:
        """See `Hooks`."""
        return self.saver.let_change()

    def finish(self) -> None:
        """See `Hooks`."""
        self.saver.finish()
        if self.copier is not None:
            self.copier.finish()

    def _sync(self) -> None:
        """No checkpoint stands before the records and lines of its steps do. In the thread that writes it."""
        self.samples.sync()
        if self.log is not None:
            self.log.sync()

    def _stands(self, saved: Saved, path: Path) -> None:
        """Tell of a checkpoint, in the thread that has written it."""
        if self.log is None:
            return
        cost_s, written_in_s = round(saved.stalled_s, 3), round(time.perf_counter() - saved.began_at, 3)
        if self.pacer is not None:
            self.pacer.stands(cost_s=cost_s, written_in_s=written_in_s)
        facts = {"path": path.name, "seconds": cost_s, "written_in_s": written_in_s}
        events.record(self.run, "checkpoint", step=saved.progress.step, attempt=self.attempt.number, **facts)
        if self.copier is not None:
            self.copier.stands(path, saved.progress.best_step)

    def stop_requested(self) -> bool:
        """See `Hooks`; also where a checkpoint has failed, which saving again tells all ranks."""
        return self.interrupted() or self.saver.failed or (self.log is not None and stop_requested(self.run))

    def how_it_ended(self) -> str:
        """`finished` or `stopped`, after the loop: its end is saved in both cases."""
        return "finished" if self._saved is not None and self._saved.is_end(self.job.training.steps) else "stopped"


@contextlib.contextmanager
def open_hooks(
    run: Path,
    job: JobSpec,
    dataset: Dataset,
    *,
    parts: Parts,
    saver: Saver,
    began: Began,
    interrupted: Callable[[], bool],
) -> Iterator[RankHooks]:
    """The hooks of a rank: on rank 0 with the run's metrics and the tracker, which are closed after the loop."""
    attempt, rank = began.attempt, parts.group.rank
    origin = {"dataset": dataset.path.name, "tokenizer_sha256": str(dataset.manifest["tokenizer"]["sha256"])}
    watch = Stopwatch(time.time() - sum(began.startup.values()))
    with contextlib.ExitStack() as opened:
        samples = opened.enter_context(contextlib.closing(SampleLog(run, attempt=attempt.number, rank=rank)))
        hooks = RankHooks(run, job, attempt, saver, origin, None, NoTracker(), interrupted, watch, samples)
        if rank == 0:
            opened.enter_context(_telling(hooks, dataset, began, workers=parts.group.num_ranks))
        opened.callback(saver.abandon, _LAST_CHECKPOINT_S)  # first of all: it needs the files that the others close
        yield hooks


@contextlib.contextmanager
def _telling(hooks: RankHooks, dataset: Dataset, began: Began, *, workers: int) -> Iterator[None]:
    """What rank 0 tells besides: events, lines, the tracker, and copies of the checkpoints."""
    run, job, attempt = hooks.run, hooks.job, hooks.attempt
    redone = _record_beginning(run, began, workers=workers)
    if all(window.after_step != (began.resumed_step or 0) for window in read_windows(run)):  # it is the same batch
        hooks.loss_before = redone.first_loss
    hooks.log = MetricLog(run, attempt=attempt, resumed_step=began.resumed_step or 0)
    hooks.tracker, how = _tracker(run, job, dataset), "failed"
    try:
        hooks.utilisation = Utilisation(
            flops_per_token=read_plan(run).flops_per_token,
            workers=workers,
            stated_flops=job.cluster.worker_flops,
            product_flops=measured_product_flops(job.training, own_device()),
        )
        if every_s := job.training.checkpoint.every_s:
            hooks.pacer = pacer_of(every_s, read_events(run), now=time.monotonic())
        if uri := job.training.checkpoint.copy_to:
            hooks.copier = Copier(attempt, uri, retention_of(job))
        yield
        how = hooks.how_it_ended()
        hooks.tracker.summarize(_summary(run, job))
    finally:
        hooks.log.close()
        hooks.tracker.close()
        with contextlib.suppress(OSError):  # where no disk is left, what failed before says so
            events.record(run, "ended", attempt=attempt.number, how=how)


def _record_beginning(run: Path, began: Began, *, workers: int) -> Redone:
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
    return redone


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
