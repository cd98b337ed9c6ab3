"""The stage, on the driver's side: attempt after attempt of a run, their progress, their end."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator import presence
from orchestrator.attempts import Attempt, writing_run
from orchestrator.checkpoint.origin import Origin
from orchestrator.checkpoint.reader import (
    Checkpoint,
    best_checkpoint,
    committed_steps,
    newest_checkpoint,
    read_progress,
)
from orchestrator.data.dataset import Dataset
from orchestrator.errors import CapacityError, Stopped, StorageError, TrainError
from orchestrator.job import JobSpec
from orchestrator.plan import Plan, make_plan, require_capacity, require_one_sample
from orchestrator.runfolder import clear_stop, create_run, largest_micro_batch, limit_micro_batch, stop_requested
from orchestrator.store import storage_errors
from orchestrator.track.progress import say
from orchestrator.train.driver.elastic import no_room
from orchestrator.train.driver.room import Watch, record_size
from orchestrator.train.driver.supervise import stopped, supervise
from orchestrator.train.driver.waiting import Cluster, find_room
from orchestrator.train.guarding.watchdog import read_hang
from orchestrator.train.recovery import ends
from orchestrator.train.recovery.failures import Failure, FailureClass, classify
from orchestrator.train.recovery.retries import Decision, Failed, decide
from orchestrator.train.saving.offsite import take_back


@dataclass(frozen=True)
class Trained:
    """The end of the stage."""

    checkpoint: Checkpoint
    """Of the last step."""
    best: Checkpoint
    """What is exported: the best by `train.evaluate.best`, or the last."""
    resumed_from_step: int | None
    reused: bool


@dataclass(frozen=True)
class RunIdentity:
    """What makes a run the run that it is."""

    hash: str
    origin: Origin | None = None
    """The weights that it begins with; None: they are drawn."""


def train(job: JobSpec, run: Path, *, dataset: Dataset, identity: RunIdentity, cluster: Cluster) -> Trained:
    """Train a run to its last step: reused where that is done, resumed where a part is.

    Raises:
        StoreError: another process writes the run, no checkpoint verifies, or the disk is full.
        CapacityError: the cluster does not hold the smallest group of workers.
        TrainError: the training failed.
        Stopped: a signal came; everything up to the last step is saved.
    """
    before = newest_checkpoint(run, say=say)
    if before is not None and before.progress.is_end(job.training.steps):
        return Trained(before, best_checkpoint(run, say=say) or before, None, reused=True)
    if job.data.kind == "text":
        require_one_sample(job.model.context, dataset.tokens("train"))
    view = cluster.connect()
    if cluster.queue is None:  # a cluster may grow, and is waited for
        require_capacity(job, view)
    run.mkdir(parents=True, exist_ok=True)
    try:
        resumed = _until_done(_Task(job, run, dataset, identity, cluster))
    except KeyboardInterrupt as interrupt:
        raise stopped(run, interrupt) from None
    done = newest_checkpoint(run, say=say)
    if done is None or not done.progress.is_end(job.training.steps):
        raise TrainError(f"{run.name} ended without its last checkpoint", fix="run the same command again: it resumes")
    return Trained(done, best_checkpoint(run, say=say) or done, resumed, reused=False)


@dataclass(frozen=True)
class _Task:
    """What every attempt of a run has in common."""

    job: JobSpec
    run: Path
    dataset: Dataset
    identity: RunIdentity
    cluster: Cluster


@dataclass(frozen=True)
class _Attempted:
    """How an attempt has ended."""

    resumed: int | None
    """The step that it went on from."""
    decision: Decision | None = None
    """What follows its failure; None: it came to an end in order."""
    error: Exception | None = None
    goes_on: bool = False
    """Whether it has saved and ended so that another goes on, on other machines."""
    began: bool = False
    """Whether its workers were seen at work: the next one takes its turn before runs that have not begun."""


def _until_done(task: _Task) -> int | None:
    """Attempt after attempt, as long as the failures allow another. The step that the last one went on from."""
    history: list[Failed] = []
    begun = False
    while True:
        try:
            ended = _attempt(task, history, begun=begun)
        except StorageError as error:  # while it was laid out, or taken for writing
            ended = _Attempted(None, _after(task, history, error), error)
        begun |= ended.began
        if ended.goes_on:
            continue
        if ended.decision is None:
            return ended.resumed
        if ended.decision.action == "stop":
            ends.alert(task.job, task.run, history[-1])
            raise ends.final_error(task.run, history[-1], ended.decision) from ended.error
        time.sleep(ended.decision.after_s)


def _attempt(task: _Task, history: list[Failed], *, begun: bool) -> _Attempted:
    """One worker group, from the newest checkpoint on, on what there is by now; a failure is added to `history`."""
    run, job = task.run, task.job
    with (
        storage_errors(run, doing=f"writing the run {run.name}"),
        writing_run(run) as attempt,
        task.cluster.standing(job, run.name, begun=begun) as turn,
    ):
        presence.note_command(run)
        try:
            room = find_room(job, task.cluster, turn)
        except Exception as error:  # noqa: BLE001 - told apart there; Ray's, or that there was none
            return _Attempted(None, _after(task, history, error, attempt=attempt), error)
        plan = make_plan(job, room.view, vocab_size=task.dataset.vocab_size)
        resumed = _lay_out(task, plan, attempt)
        watch = Watch(attempt, job, workers=plan.workers, cluster=task.cluster, turn=turn)
        samples = largest_micro_batch(run) or plan.micro_batch
        try:
            supervise(plan, attempt, job, watch=watch, room=room, first_step=resumed or 0)
        except Stopped:
            raise
        except Exception as error:  # noqa: BLE001 - told apart there, whatever it is
            decision = _after(task, history, error, attempt=attempt, watch=watch, samples=samples)
            return _Attempted(resumed, decision, error, began=bool(watch.places))
        return _Attempted(resumed, goes_on=_makes_way(task, attempt, watch), began=bool(watch.places))


def _makes_way(task: _Task, attempt: Attempt, watch: Watch) -> bool:
    """Whether an attempt that came to an end in order has saved for another to go on; says why."""
    run, wish = task.run, watch.wish
    saved = committed_steps(run)
    if saved and read_progress(saved[-1]).is_end(task.job.training.steps):
        return False
    if wish is None and stop_requested(run):  # somebody else's word
        return False
    if wish is not None and wish.kind == "more":
        return True
    # With notice, nothing is lost, and no budget is used up.
    cause = wish.why if wish is not None else "a worker was told to end"
    failed = Failed(Failure.of(FailureClass.PREEMPTION, cause), ends.last_good_step(run))
    decision = Decision("retry", "saved in time")
    ends.record_failure(run, failed, decision, attempt=attempt.number)
    say(_going_on(run, failed, decision))
    return True


def _after(
    task: _Task,
    history: list[Failed],
    error: Exception,
    *,
    attempt: Attempt | None = None,
    watch: Watch | None = None,
    samples: int = 1,
) -> Decision:
    """Tell a failure apart, add it to `history`, decide what follows, and say so."""
    run = task.run
    hang = read_hang(attempt) if attempt is not None else None
    failure = classify(error, doing=f"writing the run {run.name}", hang=hang.cause if hang else None)
    if isinstance(error, CapacityError):
        failure = no_room(error)
    if watch is not None:
        failure = watch.blamed(failure)
    history.append(Failed(_with_fewer(run, failure, samples), ends.last_good_step(run)))
    decision = decide(history, task.job.training.retries)
    if decision.action == "rollback":
        ends.leave_out(run, history[-1], task.job.training.guard)
    with contextlib.suppress(OSError):  # a full disk, which is what is told then
        ends.record_failure(run, history[-1], decision, attempt=attempt.number if attempt else None)
    if decision.action != "stop":
        say(_going_on(run, history[-1], decision))
    return decision


def _lay_out(task: _Task, plan: Plan, attempt: Attempt) -> int | None:
    """What the workers read, written anew; the step that they go on from."""
    run, identity = task.run, task.identity
    began = (identity.origin.folder, identity.origin.identity) if identity.origin else None
    create_run(run, job=task.job, plan=plan, dataset=task.dataset.path, identity=identity.hash, origin=began)
    clear_stop(run)
    take_back(task.job, run)
    before = newest_checkpoint(run, say=say)  # again: workers of a killed driver may have committed one
    step = before.step if before else None
    if before is not None:
        say(f"continuing {run.name} after step {step}")
    record_size(attempt, workers=plan.workers, step=step or 0, why=plan.why[0])
    return step


def _with_fewer(run: Path, failure: Failure, samples: int) -> Failure:
    """Where memory ran out with no word of the worker's own, the micro-batch is halved for it."""
    if failure.kind is not FailureClass.OUT_OF_MEMORY or failure.error is not None:
        return failure
    if samples > 1:
        limit_micro_batch(run, samples // 2)
    return replace(failure, cause=f"{failure.cause} (micro-batch of {samples})", retriable=samples > 1)


def _going_on(run: Path, failed: Failed, decision: Decision) -> str:
    failure, number = failed.failure, largest_micro_batch(run)
    fewer = f" with {number} sample(s) in a pass" if decision.action == "retry-smaller" else ""
    later = f" in {decision.after_s:.0f} s" if decision.after_s else ""
    return f"{failure.kind.value}: {failure.cause}; going on from step {failed.step}{fewer}{later} ({decision.why})"
