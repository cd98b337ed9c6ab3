"""The folder of a run: what is in it before the first step, and how a stop is asked for. Imports no torch."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from orchestrator.errors import StoreError
from orchestrator.job import JobSpec
from orchestrator.job_file import job_to_yaml, load_job
from orchestrator.plan import Plan
from orchestrator.store import write_json, write_text

_DESCRIPTION = "run.json"
_STOP = "stop"


def create_run(run: Path, *, job: JobSpec, plan: Plan, dataset: Path, identity: str) -> None:
    """Write what a worker needs to know; again at each attempt, because workers and logging may have changed."""
    run.mkdir(parents=True, exist_ok=True)
    write_text(run / "job.yaml", job_to_yaml(job))
    write_json(run / "plan.json", json.loads(plan.model_dump_json()))
    # Beside each other in a store, so that the store may move.
    write_json(run / _DESCRIPTION, {"format": 1, "hash": identity, "dataset": f"../../datasets/{dataset.name}"})


def read_run(run: Path) -> tuple[JobSpec, Path]:
    """The job of a run and the folder of its dataset.

    Raises:
        StoreError: the folder is no run.
    """
    return load_job(run / "job.yaml"), dataset_of(run)


def dataset_of(run: Path) -> Path:
    """The folder of the dataset that a run trains on.

    Raises:
        StoreError: the folder is no run.
    """
    try:
        description: dict[str, Any] = json.loads((run / _DESCRIPTION).read_text(encoding="utf-8"))
        return Path(run / description["dataset"]).resolve()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{run} is not the folder of a run: {error}", fix="`slipway runs` lists them") from None


def request_stop(run: Path) -> None:
    """Ask the workers to save and end after the step they are in."""
    (run / _STOP).touch()


def stop_requested(run: Path) -> bool:
    """Whether somebody has asked."""
    return (run / _STOP).exists()


def clear_stop(run: Path) -> None:
    """At the start of an attempt."""
    with contextlib.suppress(FileNotFoundError):
        (run / _STOP).unlink()
