"""Whether a run has kept its promises through a drill: all invariants, and the figures that are told."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from pathlib import Path

from orchestrator.chaos import find, invariants
from orchestrator.chaos.faults import Scene
from orchestrator.chaos.schedule import Report
from orchestrator.chaos.watch import Watch, loss_of
from orchestrator.data.dataset import Dataset, open_dataset
from orchestrator.data.load.mixture import is_mixture
from orchestrator.data.load.stream import samples_in
from orchestrator.data.shelf import parts_at_hand
from orchestrator.data.splits import TRAIN
from orchestrator.job import JobSpec
from orchestrator.runfolder import read_run
from orchestrator.track import metrics
from orchestrator.track.events import read_events
from orchestrator.track.goodput import read_ledger
from orchestrator.track.history import recorded
from orchestrator.track.samples import SampleAccount, account_for_samples, read_windows

_GONE_IN_S = 30.0
"""Workers of a killed driver may outlive it for 20 s."""
_GIVEN_BACK_IN_S = 5.0


def judge(scene: Scene, watch: Watch, report: Report, *, shared_memory_before: set[str]) -> None:
    """Look at all that a run has left, and complete the report.

    Raises:
        StoreError: the folder is no run any more.
    """
    run = scene.run
    job, dataset_path = read_run(run)
    report.violations += scene.violations
    report.violations += invariants.await_nothing(
        lambda: invariants.none_left([*scene.doomed, *find.overtaken(run)]), limit_s=_GONE_IN_S
    )
    account = _samples(run, job, open_dataset(dataset_path, verify=False))
    report.steps, report.samples_skipped = account.steps, account.samples_skipped
    report.samples_lost, report.samples_repeated = account.samples_lost, account.samples_repeated
    report.violations += account.problems[:1]
    report.violations += _curve(run, job, watch)
    report.violations += invariants.checkpoints_whole(run, scene.damaged)
    report.violations += invariants.passed_over(read_events(run), scene.damaged)
    report.violations += invariants.nothing_unfinished(run, now=time.time())
    given_back = functools.partial(invariants.shared_memory_given_back, shared_memory_before)
    report.violations += invariants.await_nothing(given_back, limit_s=_GIVEN_BACK_IN_S)
    report.steps_redone = len(watch.redone)
    alive = time.time() if scene.driver.process is not None else None
    report.goodput = read_ledger(run, compiled=job.training.compile, now=alive).goodput()["fraction"]


def _samples(run: Path, job: JobSpec, dataset: Dataset) -> SampleAccount:
    """The ledger, against the order that the job's own feed gives."""
    from orchestrator.objectives.task import make_feed  # brings torch, which takes a second

    with contextlib.ExitStack() as leases:
        feed = make_feed(job, dataset, leases)
        return account_for_samples(run, order=feed.samples, epoch=_epoch(job, dataset, leases))


def _epoch(job: JobSpec, dataset: Dataset, leases: contextlib.ExitStack) -> int | None:
    """Samples in an epoch of plain text without weights; None of what is numbered otherwise."""
    if dataset.kind != "text" or job.model.kind != "gpt":
        return None
    if is_mixture(leases.enter_context(parts_at_hand(dataset, TRAIN, job.data)), job.data.curriculum):
        return None
    return samples_in(dataset.tokens(TRAIN), job.model.context)


def _curve(run: Path, job: JobSpec, watch: Watch) -> list[str]:
    lines, broken = invariants.lines_of(run)
    begun = [attempt for attempt in recorded(read_events(run)) if attempt.started_at is not None]
    alike = len({attempt.workers for attempt in begun}) <= 1 and job.training.precision == "fp32"
    broken += invariants.redone_alike(
        watch.redone,
        tolerance=invariants.SAME_WORKERS_TOLERANCE if alike else invariants.TOLERANCE,
        changed_after=min((window.after_step for window in read_windows(run)), default=None),
    )
    losses = {line[metrics.STEP]: loss_of(line) for line in lines if math.isfinite(loss_of(line))}
    return broken + invariants.continuous(losses, [attempt.step for attempt in begun if attempt.step])
