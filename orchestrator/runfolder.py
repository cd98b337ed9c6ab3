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
from orchestrator.source_code import code_commit
from orchestrator.store import write_json, write_text

_DESCRIPTION = "run.json"
_STOP = "stop"
_MICRO_BATCH = "micro-batch"


def create_run(
    run: Path,
    *,
    job: JobSpec,
    plan: Plan,
    dataset: Path,
    identity: str,
    origin: tuple[Path, str] | None = None,
) -> None:
    """Write what a worker needs to know; again at each attempt, because workers and logging may have changed.

    `origin` is the folder of the weights that the run begins with, and their identity.
    """
    run.mkdir(parents=True, exist_ok=True)
    write_text(run / "job.yaml", job_to_yaml(job))
    write_json(run / "plan.json", json.loads(plan.model_dump_json()))
    # Beside each other in a store, so that the store may move.
    description: dict[str, Any] = {
        "format": 1,
        "hash": identity,
        "dataset": f"../../datasets/{dataset.name}",
        "commit": code_commit(),
    }
    if origin is not None:
        description["origin"] = {"folder": str(origin[0].resolve()), "identity": origin[1]}
    write_json(run / _DESCRIPTION, description)


def read_run(run: Path) -> tuple[JobSpec, Path]:
    """The job of a run and the folder of its dataset.

    Raises:
        StoreError: the folder is no run.
    """
    if not (run / "job.yaml").is_file():
        raise StoreError(f"{run} is no run: it has no job.yaml", fix="give the folder that `slipway prepare JOB` names")
    return load_job(run / "job.yaml"), dataset_of(run)


def read_plan(run: Path) -> Plan:
    """The plan of a run.

    Raises:
        StoreError: the folder has none of this version.
    """
    try:
        return Plan.model_validate_json((run / "plan.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{run / 'plan.json'} is no plan of this version: {error}", fix="run the job again: it is planned anew"
        ) from None


def dataset_of(run: Path) -> Path:
    """The folder of the dataset that a run trains on.

    Raises:
        StoreError: the folder is no run.
    """
    return Path(run / _described(run)["dataset"]).resolve()


def origin_of(run: Path) -> tuple[Path, str] | None:
    """The folder of the weights that a run begins with, and their identity; None where they are drawn.

    Raises:
        StoreError: the folder is no run.
    """
    found = _described(run).get("origin")
    return (Path(found["folder"]), str(found["identity"])) if found else None


def commit_of(run: Path) -> str | None:
    """The commit of the sources that wrote the run last; None where that is not known.

    Raises:
        StoreError: the folder is no run.
    """
    found = _described(run).get("commit")
    return None if found is None else str(found)


def _described(run: Path) -> dict[str, Any]:
    try:
        description: dict[str, Any] = json.loads((run / _DESCRIPTION).read_text(encoding="utf-8"))
        description["dataset"]
        return description
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = f"it has no {_DESCRIPTION}" if isinstance(error, FileNotFoundError) else error
        raise StoreError(f"{run} is not the folder of a run: {why}", fix="`slipway runs` lists them") from None


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


def limit_micro_batch(run: Path, samples: int) -> None:
    """Note that more samples than these do not fit into memory at once; it holds for all later attempts."""
    write_text(run / _MICRO_BATCH, f"{samples}\n")


def largest_micro_batch(run: Path) -> int | None:
    """What `limit_micro_batch` noted; None where memory never ran out."""
    try:
        return int((run / _MICRO_BATCH).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
