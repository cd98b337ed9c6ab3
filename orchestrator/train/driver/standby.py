"""Processes that stand by beside a training: the attempt after a failure takes them, and starts without imports."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from orchestrator.attempts import Attempt
from orchestrator.cluster.standby import stand_by
from orchestrator.job import JobSpec
from orchestrator.job_train import Workers
from orchestrator.plan import Plan
from orchestrator.train.driver.elastic import Pace
from orchestrator.train.driver.room import pace_of, places_of, scratch_of

_WORKER_IMPORTS = "ray.train.torch,orchestrator.train.worker"
_LOOK_EVERY_S = 2.0
_SETTLE_S = 8.0
"""After an attempt's first steps: what starts now takes processor time from what trains."""
_LEAST_LEFT_S = 60.0

Role = Literal["worker", "controller"]
Ask = Callable[..., None]


def worker_imports(plan: Plan, workers: Workers) -> str:
    """What workers have imported before they are given work.

    DeepSpeed asks for GPUs when it is imported: not before the worker has been given its own.
    """
    deepspeed = plan.zero_stage > 0 and not workers.gpus
    return _WORKER_IMPORTS + (",orchestrator.train.engine.deepspeed_preload" if deepspeed else "")


def note_environment(run: Path, role: Role, environment: str) -> None:
    """Called by a process of the attempt: the runtime environment that Ray has given it."""
    folder = scratch_of(run) / "environments"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / role).write_text(environment, encoding="utf-8")


def pays(pace: Pace | None) -> bool:
    """Whether a run goes on for long enough to start processes that may never be needed."""
    return pace is not None and pace.steps_left * pace.step_s >= _LEAST_LEFT_S


@contextlib.contextmanager
def standing_by(attempt: Attempt, job: JobSpec, *, here: Callable[[], str], ask: Ask = stand_by) -> Iterator[None]:
    """Once the attempt trains, have as many processes wait on each machine as work there, and those that direct them.

    `here` is Ray's id of the driver's machine, where Ray Train's controller runs.
    """
    ended = threading.Event()
    if job.training.workers.standby:
        args = (attempt, job, ended, here, ask)
        threading.Thread(target=_stand_by, args=args, name="standby", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _stand_by(attempt: Attempt, job: JobSpec, ended: threading.Event, here: Callable[[], str], ask: Ask) -> None:
    while (pace := pace_of(attempt, steps=job.training.steps)) is None:
        if ended.wait(_LOOK_EVERY_S):
            return
    if not pays(pace) or ended.wait(_SETTLE_S):
        return
    # What has ended is cold at its next start, no more; whatever Ray says to that is no reason to stop a training.
    with contextlib.suppress(Exception):
        environments = scratch_of(attempt.run) / "environments"
        # In the controller's environment too: what Ray Train has ranks agree through.
        ask((environments / "controller").read_text(encoding="utf-8"), machine=here(), processes=2)
        for machine, ranks in places_of(attempt.run).items():
            ask((environments / "worker").read_text(encoding="utf-8"), machine=machine, processes=len(ranks))
