"""What leaves the loop of a rank: metrics, scores, checkpoints, events; and the word that ends it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
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
from orchestrator.track.metric_log import MetricLog, read_metrics
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
    utilisation: Utilisation | None = None

    def on_step(self, line: dict[str, Any]) -> None:
        """See `Hooks`."""
        if self.log is None:
            return
        if self.utilisation is not None:
            line |= self.utilisation.line(line[metrics.TOKENS_PER_S])
        self.log.append(line)
        self.tracker.log(line)
        step = line[metrics.STEP]
        if is_due(step, last=self.job.training.steps, every=self.job.training.log_every_steps):
            say(describe(line, self.job.training.steps))

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
        if self.log is not None:
            self.log.sync()
        path = self.saver.save(progress, attempt=self.attempt.number, facts={"run": self.run.name, **self.origin})
        if self.log is not None:
            events.record(self.run, "checkpoint", step=progress.step, path=path.name, attempt=self.attempt.number)

    def stop_requested(self) -> bool:
        """See `Hooks`."""
        return stop_requested(self.run) or self.interrupted()


@contextlib.contextmanager
def open_hooks(
    run: Path, job: JobSpec, dataset: Dataset, *, parts: Parts, began: Began, interrupted: Callable[[], bool]
) -> Iterator[RankHooks]:
    """The hooks of a rank: on rank 0 with the run's metrics and the tracker, which are closed after the loop."""
    attempt, saver = began.attempt, parts.saver(run, began.attempt)
    origin = {"dataset": dataset.path.name, "tokenizer_sha256": str(dataset.manifest["tokenizer"]["sha256"])}
    if parts.group.rank != 0:
        yield RankHooks(run, job, attempt, saver, origin, None, NoTracker(), interrupted)
        return
    log = MetricLog(run, attempt=attempt, resumed_step=began.resumed_step or 0)
    events.record(
        run,
        "started" if began.resumed_step is None else "resumed",
        step=began.resumed_step or 0,
        attempt=attempt.number,
        workers=parts.group.num_ranks,
        startup=began.startup,
    )
    tracker = _tracker(run, job, dataset)
    try:
        utilisation = Utilisation(
            flops_per_token=read_plan(run).flops_per_token,
            workers=parts.group.num_ranks,
            stated_flops=job.cluster.worker_flops,
            product_flops=measured_product_flops(job.training, own_device()),
        )
        yield RankHooks(run, job, attempt, saver, origin, log, tracker, interrupted, utilisation)
        tracker.summarize(_summary(run))
    finally:
        log.close()
        tracker.close()


def _tracker(run: Path, job: JobSpec, dataset: Dataset) -> Tracker:
    who = RunIdentity(identity.wandb_run_id(run.name), run.name, run)
    tracker = open_tracker(job.track.wandb, who, config=redact(job.model_dump(mode="json")), environ=environment())
    facts = {key: dataset.manifest[key] for key in ("hash", "vocab_size", "sources")}
    tracker.used_dataset(
        dataset.path, {**facts, **{f"{s}_tokens": dataset.tokens(s) for s in dataset.manifest["splits"]}}
    )
    return tracker


def _summary(run: Path) -> dict[str, Any]:
    lines = list(read_metrics(run))
    evaluated = [line[metrics.EVAL_LOSS] for line in lines if metrics.EVAL_LOSS in line]
    rate = metrics.typical_tokens_per_s(lines)
    return {"tokens_per_s": rate, "best_eval_loss": min(evaluated, default=None), "steps": len(lines)}
