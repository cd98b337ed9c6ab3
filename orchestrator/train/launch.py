"""The stage, on the driver's side: workers under Ray Train, their progress, their end. The one home of ray.train."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.attempts import Attempt, writing_run
from orchestrator.checkpoint.origin import Origin
from orchestrator.checkpoint.reader import Checkpoint, best_checkpoint, newest_checkpoint
from orchestrator.data.dataset import Dataset
from orchestrator.errors import Interrupted, Stopped, StorageError, TrainError
from orchestrator.job import JobSpec
from orchestrator.plan import ClusterView, Plan, make_plan, require_capacity, require_one_sample
from orchestrator.runfolder import clear_stop, create_run, largest_micro_batch, limit_micro_batch, request_stop
from orchestrator.store import storage_errors
from orchestrator.track import events
from orchestrator.track.follow import following
from orchestrator.track.progress import say
from orchestrator.train import ends
from orchestrator.train.failures import Failure, FailureClass, classify
from orchestrator.train.retries import Decision, Failed, decide
from orchestrator.train.watchdog import read_hang

_STOP_LIMIT_S = 60.0
"""How long workers may take to finish their step and save after a stop was asked for."""


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


def train(
    job: JobSpec, run: Path, *, dataset: Dataset, identity: RunIdentity, connect: Callable[[], ClusterView]
) -> Trained:
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
    view = connect()
    require_capacity(job, view)
    plan = make_plan(job, view, vocab_size=dataset.vocab_size)
    run.mkdir(parents=True, exist_ok=True)
    resumed = _until_done(_Task(job, plan, run, dataset, identity))
    done = newest_checkpoint(run, say=say)
    if done is None or not done.progress.is_end(job.training.steps):
        raise TrainError(f"{run.name} ended without its last checkpoint", fix="run the same command again: it resumes")
    return Trained(done, best_checkpoint(run, say=say) or done, resumed, reused=False)


@dataclass(frozen=True)
class _Task:
    """What every attempt of a run has in common."""

    job: JobSpec
    plan: Plan
    run: Path
    dataset: Dataset
    identity: RunIdentity


@dataclass(frozen=True)
class _Attempted:
    """How an attempt has ended."""

    resumed: int | None
    """The step that it went on from."""
    decision: Decision | None = None
    """What follows its failure; None: it came to the end."""
    error: Exception | None = None


def _until_done(task: _Task) -> int | None:
    """Attempt after attempt, as long as the failures allow another. The step that the last one went on from."""
    history: list[Failed] = []
    while True:
        try:
            ended = _attempt(task, history)
        except StorageError as error:  # while it was laid out, or taken for writing
            ended = _Attempted(None, _after(task, history, error), error)
        if ended.decision is None:
            return ended.resumed
        if ended.decision.action == "stop":
            ends.alert(task.job, task.run, history[-1])
            raise ends.final_error(task.run, history[-1], ended.decision) from ended.error
        try:
            time.sleep(ended.decision.after_s)
        except KeyboardInterrupt as interrupt:
            raise _stopped(task.run, interrupt) from None


def _attempt(task: _Task, history: list[Failed]) -> _Attempted:
    """One worker group, from the newest checkpoint on; its failure is added to `history`."""
    run = task.run
    with storage_errors(run, doing=f"writing the run {run.name}"), writing_run(run) as attempt:
        resumed = _lay_out(task)
        samples = largest_micro_batch(run) or task.plan.micro_batch
        try:
            _fit(task.plan, run, task.job, attempt=attempt, first_step=resumed or 0)
        except Stopped:
            raise
        except Exception as error:  # noqa: BLE001 - told apart there, whatever it is
            return _Attempted(resumed, _after(task, history, error, attempt=attempt, samples=samples), error)
    return _Attempted(resumed)


def _after(
    task: _Task, history: list[Failed], error: Exception, *, attempt: Attempt | None = None, samples: int = 1
) -> Decision:
    """Tell a failure apart, add it to `history`, decide what follows, and say so."""
    run = task.run
    hang = read_hang(attempt) if attempt is not None else None
    failure = classify(error, doing=f"writing the run {run.name}", hang=hang.cause if hang else None)
    history.append(Failed(_with_fewer(run, failure, samples), ends.last_good_step(run)))
    decision = decide(history, task.job.training.retries)
    with contextlib.suppress(OSError):  # a full disk, which is what is told then
        ends.record_failure(run, history[-1], decision, attempt=attempt.number if attempt else None)
    if decision.action != "stop":
        say(_going_on(run, history[-1], decision))
    return decision


def _lay_out(task: _Task) -> int | None:
    """What the workers read, written anew; the step that they go on from."""
    run, identity = task.run, task.identity
    began = (identity.origin.folder, identity.origin.identity) if identity.origin else None
    create_run(run, job=task.job, plan=task.plan, dataset=task.dataset.path, identity=identity.hash, origin=began)
    clear_stop(run)
    before = newest_checkpoint(run, say=say)  # again: workers of a killed driver may have committed one
    if before is not None:
        say(f"continuing {run.name} after step {before.step}")
    return before.step if before else None


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


def _fit(plan: Plan, run: Path, job: JobSpec, *, attempt: Attempt, first_step: int) -> None:
    """Run the workers to their end, following their metrics; a signal makes them save first."""
    ended = threading.Event()
    failure: list[BaseException] = []

    def fit() -> None:
        try:
            _ray_train(plan, run, job, attempt)
        except BaseException as error:  # noqa: BLE001 - handed to the main thread, which raises it
            failure.append(error)
        finally:
            ended.set()

    events.record(run, "launched", attempt=attempt.number, workers=plan.workers, driver=events.PROCESS)
    # Off the main thread, Ray Train leaves Ctrl-C to us: its own handler would abort without a checkpoint.
    threading.Thread(target=fit, name="ray-train", daemon=True).start()
    with following(run, first_step=first_step, steps=job.training.steps, every=job.training.log_every_steps):
        _wait(ended, run)
    if failure:
        raise failure[0]


def _wait(ended: threading.Event, run: Path) -> None:
    try:
        while not ended.wait(0.2):
            pass
    except KeyboardInterrupt as interrupt:
        say("stopping: the workers finish their step and save")
        request_stop(run)
        with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C does not wait for them
            ended.wait(_STOP_LIMIT_S)
        raise _stopped(run, interrupt) from None


def _stopped(run: Path, interrupt: KeyboardInterrupt) -> Stopped:
    saved = newest_checkpoint(run, say=say)
    return Stopped(
        f"{run.name} was stopped; " + (f"saved up to step {saved.step}" if saved else "it had not saved a step yet"),
        fix="run the same command again: it continues",
        signum=interrupt.signum if isinstance(interrupt, Interrupted) else signal.SIGINT,
    )


def _ray_train(plan: Plan, run: Path, job: JobSpec, attempt: Attempt) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    workers = job.training.workers
    scratch = run / ".ray"
    trainer = TorchTrainer(
        _worker_main,
        train_loop_config={"run": str(run), "attempt": attempt.number, "launched_at": time.time()},
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if workers.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=plan.workers,
            use_gpu=workers.gpus > 0,
            resources_per_worker={"CPU": workers.cpus, **({"GPU": workers.gpus} if workers.gpus else {})},
        ),
        run_config=RunConfig(
            name="attempt",
            storage_path=str(scratch),
            # What follows a failure is decided here, and each new worker group is an attempt of its own.
            failure_config=FailureConfig(
                max_failures=0,
                max_preemption_failures=0,  # type: ignore[call-arg]  # Ray's stubs are of its first trainer
                controller_failure_limit=0,
            ),
        ),
    )
    try:
        trainer.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _worker_main(config: dict[str, Any]) -> None:
    """In the worker: its output goes to the run's folder, its errors to the driver."""
    from ray.train import get_context

    from orchestrator.train.group import TorchGroup
    from orchestrator.train.worker import run_worker

    run = Path(config["run"])
    rank = get_context().get_world_rank()
    with _output_to(run / "logs" / f"rank-{rank:05d}.log"):
        try:
            attempt = Attempt(run, config["attempt"])
            run_worker(run, attempt=attempt, group=TorchGroup(), launched_at=config["launched_at"])
        except Exception:  # Ray carries the error away, and leaves no traceback in the rank's own log
            traceback.print_exc()
            raise


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Send this process's stdout and stderr to a file, libraries written in C included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
        yield
