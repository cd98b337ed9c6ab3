"""The stage, on the driver's side: workers under Ray Train, their progress, their end. The one home of ray.train."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.attempts import Attempt, writing_run
from orchestrator.checkpoint.origin import Origin
from orchestrator.checkpoint.reader import Checkpoint, best_checkpoint, newest_checkpoint
from orchestrator.data.dataset import Dataset
from orchestrator.errors import Interrupted, OutOfMemoryError, SlipwayError, Stopped, TrainError, storage_error
from orchestrator.job import JobSpec
from orchestrator.plan import ClusterView, Plan, make_plan, require_capacity, require_one_sample
from orchestrator.runfolder import clear_stop, create_run, request_stop
from orchestrator.store import storage_errors
from orchestrator.track import events
from orchestrator.track.follow import following
from orchestrator.track.progress import say

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
    resumed = _attempt(job, plan, run, dataset=dataset, identity=identity)
    done = newest_checkpoint(run, say=say)
    if done is None or not done.progress.is_end(job.training.steps):
        raise TrainError(f"{run.name} ended without its last checkpoint", fix="run the same command again: it resumes")
    return Trained(done, best_checkpoint(run, say=say) or done, resumed, reused=False)


def _attempt(job: JobSpec, plan: Plan, run: Path, *, dataset: Dataset, identity: RunIdentity) -> int | None:
    """Train to the end; with a smaller micro-batch where memory runs out. The step that it went on from."""
    with storage_errors(run, doing=f"writing the run {run.name}"), writing_run(run) as attempt:
        began = (identity.origin.folder, identity.origin.identity) if identity.origin else None
        create_run(run, job=job, plan=plan, dataset=dataset.path, identity=identity.hash, origin=began)
        clear_stop(run)
        before = newest_checkpoint(run, say=say)  # again: workers of a killed driver may have committed one
        resumed = before.step if before else None
        if resumed is not None:
            say(f"continuing {run.name} after step {resumed}")
        try:
            _fit(plan, run, job, attempt=attempt, first_step=resumed or 0)
        except OutOfMemoryError as error:
            say(f"{error.message}: going on with fewer")
        else:
            return resumed
    return _attempt(job, plan, run, dataset=dataset, identity=identity)


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

    # Off the main thread, Ray Train leaves Ctrl-C to us: its own handler would abort without a checkpoint.
    threading.Thread(target=fit, name="ray-train", daemon=True).start()
    with following(run, first_step=first_step, steps=job.training.steps, every=job.training.log_every_steps):
        _wait(ended, run)
    if failure:
        events.record(run, "failed", attempt=attempt.number, error=type(failure[0]).__name__)
        raise _explain(failure[0], run)


def _wait(ended: threading.Event, run: Path) -> None:
    try:
        while not ended.wait(0.2):
            pass
    except KeyboardInterrupt as interrupt:
        say("stopping: the workers finish their step and save")
        request_stop(run)
        with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C does not wait for them
            ended.wait(_STOP_LIMIT_S)
        saved = newest_checkpoint(run, say=say)
        raise Stopped(
            f"{run.name} was stopped; "
            + (f"saved up to step {saved.step}" if saved else "it had not saved a step yet"),
            fix="run the same command again: it continues",
            signum=interrupt.signum if isinstance(interrupt, Interrupted) else signal.SIGINT,
        ) from None


def _ray_train(plan: Plan, run: Path, job: JobSpec, attempt: Attempt) -> None:
    from ray.train import RunConfig, ScalingConfig
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
        run_config=RunConfig(name="attempt", storage_path=str(scratch)),
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
        run_worker(run, attempt=Attempt(run, config["attempt"]), group=TorchGroup(), launched_at=config["launched_at"])


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Send this process's stdout and stderr to a file, libraries written in C included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
        yield


def _explain(error: BaseException, run: Path) -> SlipwayError:
    """The worker's own error where it has one to tell; the first rank's, since the others follow from it."""
    failures: dict[int, BaseException] = getattr(error, "worker_failures", {})
    causes = [getattr(failures[rank], "cause", failures[rank]) for rank in sorted(failures)]
    for cause in causes:
        if isinstance(cause, SlipwayError):
            return cause
    for cause in causes:
        if isinstance(cause, OSError):
            return storage_error(cause, doing=f"writing the run {run.name}")
    reason = str(causes[0] if causes else error).strip().splitlines() or [type(error).__name__]
    problem = TrainError(
        f"the training of {run.name} failed: {reason[-1]}",
        fix=f"see {run / 'logs'}; the same command continues from the last checkpoint",
    )
    problem.__cause__ = error
    return problem
