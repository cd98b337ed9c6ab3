"""An attempt while it trains: metrics are followed, the cluster is watched, a signal has the workers save and end."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from orchestrator.attempts import Attempt
from orchestrator.checkpoint.reader import newest_checkpoint
from orchestrator.cluster import template
from orchestrator.cluster.standby import this_machine
from orchestrator.errors import Interrupted, Stopped
from orchestrator.job import JobSpec
from orchestrator.plan import Plan
from orchestrator.plan.speed import cost_of
from orchestrator.runfolder import request_stop
from orchestrator.track import events
from orchestrator.track.follow import following
from orchestrator.track.goodput import read_ledger
from orchestrator.track.launched import launched_by
from orchestrator.track.progress import say
from orchestrator.train.driver.room import Watch, watching_cluster
from orchestrator.train.driver.standby import standing_by, worker_imports
from orchestrator.train.driver.waiting import Room

_STOP_LIMIT_S = 60.0
"""How long workers may take to finish their step and save after a stop was asked for."""


def supervise(plan: Plan, attempt: Attempt, job: JobSpec, *, watch: Watch, room: Room, first_step: int) -> None:
    """Run the workers to their end; a signal makes them save first.

    Raises:
        Stopped: a signal came.
        Exception: whatever has ended them.
    """
    template.begin(worker_imports(plan, job.training.workers))  # beside our own imports
    from orchestrator.train.driver.under_ray import run_group

    ended = threading.Event()
    failure: list[BaseException] = []

    def fit() -> None:
        try:
            run_group(plan, attempt, workers=job.training.workers, room=room)
        except BaseException as error:  # noqa: BLE001 - handed to the main thread, which raises it
            failure.append(error)
        finally:
            ended.set()

    run, every = attempt.run, job.training.log_every_steps
    cost = _costs(job, run, workers=plan.workers)
    events.record(
        run, "launched", attempt=attempt.number, workers=plan.workers, driver=events.PROCESS, **launched_by(os.environ)
    )
    # Off the main thread, Ray Train leaves Ctrl-C to us: its own handler would abort without a checkpoint.
    threading.Thread(target=fit, name="ray-train", daemon=True).start()
    with (
        following(run, first_step=first_step, steps=job.training.steps, every=every, cost=cost),
        watching_cluster(watch),
        standing_by(attempt, job, here=this_machine),
    ):
        _wait(ended, run)
    if failure:
        raise failure[0]


def _costs(job: JobSpec, run: Path, *, workers: int) -> Callable[[], float | None]:
    """What the run has cost at the moment of the call; None where the job names no price."""
    if cost_of(job, 1, 0.0) is None:
        return lambda: None
    before_s, began_at = read_ledger(run, compiled=job.training.compile).worker_s, time.monotonic()
    return lambda: cost_of(job, 1, (before_s + workers * (time.monotonic() - began_at)) / 3600)


def stopped(run: Path, interrupt: KeyboardInterrupt) -> Stopped:
    """What a command says that a signal has ended: how far the run is saved."""
    saved = newest_checkpoint(run, say=say)
    return Stopped(
        f"{run.name} was stopped; " + (f"saved up to step {saved.step}" if saved else "it had not saved a step yet"),
        fix="run the same command again: it continues",
        signum=interrupt.signum if isinstance(interrupt, Interrupted) else signal.SIGINT,
    )


def _wait(ended: threading.Event, run: Path) -> None:
    try:
        while not ended.wait(0.2):
            pass
    except KeyboardInterrupt as interrupt:
        say("stopping: the workers finish their step and save")
        request_stop(run)
        with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C does not wait for them
            ended.wait(_STOP_LIMIT_S)
        raise stopped(run, interrupt) from None
