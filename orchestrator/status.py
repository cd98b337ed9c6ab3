"""What of a job is in the store already: `plan` prints it beside the plan, `runs` for every run. Imports no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.checkpoint.layout import step_folder, step_of
from orchestrator.checkpoint.reader import committed_steps
from orchestrator.data.sources.listing import Listing, ListingTooSlowError, list_sources, resolve_path
from orchestrator.errors import DataError, SlipwayError
from orchestrator.identity import dataset_hash, run_hash
from orchestrator.job import JobSpec
from orchestrator.job_file import environment, load_job
from orchestrator.plan import StageStatus
from orchestrator.store import Store, is_committed, sha256_file
from orchestrator.track import metrics
from orchestrator.track.metric_log import read_metrics

_LISTING_LIMIT_S = 0.2


@dataclass(frozen=True)
class Standing:
    """The stages of a job, and what a user should know before it runs."""

    stages: list[StageStatus]
    warnings: list[str]


def dataset_identity(job: JobSpec, listing: Listing) -> str:
    """The hash of the dataset that a job makes of a listing.

    Raises:
        DataError: the given tokenizer is not there.
    """
    path = job.data.tokenizer.path
    if path is None:
        return dataset_hash(job, listing.rows(), None)
    file = Path(resolve_path(path, environment()))
    try:
        return dataset_hash(job, listing.rows(), sha256_file(file))
    except OSError as error:
        raise DataError(
            f"the tokenizer {file} cannot be read: {error.strerror}", fix="check data.tokenizer.path"
        ) from None


def given_vocabulary(job: JobSpec) -> int | None:
    """Size of the tokenizer that a job gives as a file, where that file is there; None otherwise."""
    if job.data.tokenizer.path is None:
        return None
    try:
        tokenizer = json.loads(Path(resolve_path(job.data.tokenizer.path, environment())).read_text(encoding="utf-8"))
        added = (token["id"] for token in tokenizer.get("added_tokens", []))
        return 1 + int(max(*tokenizer["model"]["vocab"].values(), *added))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SlipwayError):
        return None  # `prepare` says what is wrong with it; a plan only lacks the number


def standing(job: JobSpec, store: Store) -> Standing:
    """Which stages are done, to do, or unknown; needs no data to be present."""
    try:
        listing = list_sources(job.data, environment(), limit_s=_LISTING_LIMIT_S)
        identity = dataset_identity(job, listing)
    except ListingTooSlowError:
        return _unknown(f"listing the sources takes over {_LISTING_LIMIT_S} s")
    except SlipwayError as error:
        return _unknown(error.message)
    warnings = [f"no file matches {source}" for source in listing.unmatched]
    dataset = store.dataset(job.name, identity)
    run = store.run(job.name, run_hash(job, identity))
    last = step_folder(run / "checkpoints", job.training.steps)
    export = step_folder(run / "export", job.training.steps)
    begun = committed_steps(run)
    detail = f"continues after step {step_of(begun[-1].name)}" if begun and not is_committed(last) else None
    stages = [
        StageStatus(stage="prepare", status=_status(dataset), path=store.relative(dataset)),
        StageStatus(stage="train", status=_status(last), path=store.relative(run), detail=detail),
        StageStatus(stage="export", status=_status(export), path=store.relative(export)),
        StageStatus(stage="serve", status="todo"),
    ]
    return Standing(stages, warnings)


def describe_run(run: Path, store: Store) -> dict[str, Any]:
    """One row of `slipway runs`."""
    row: dict[str, Any] = {"run": store.relative(run), "name": run.name}
    try:
        job = load_job(run / "job.yaml")
    except SlipwayError as error:
        return {**row, "state": "unreadable", "error": error.message}
    lines = list(read_metrics(run))
    evaluated = [line[metrics.EVAL_LOSS] for line in lines if metrics.EVAL_LOSS in line]
    saved = committed_steps(run)
    step = step_of(saved[-1].name) if saved else 0
    exports = sorted(p for p in (run / "export").glob("step-*") if is_committed(p))
    state = "exported" if exports else "trained" if step == job.training.steps else "started" if lines else "prepared"
    return {
        **row,
        "state": state,
        "step": step,
        "steps": job.training.steps,
        "train_loss": lines[-1][metrics.LOSS] if lines else None,
        "validation_loss": evaluated[-1] if evaluated else None,
        "tokens_per_s": metrics.typical_tokens_per_s(lines),
        "export": store.relative(exports[-1]) if exports else None,
    }


def _status(folder: Path) -> Any:
    return "done" if is_committed(folder) else "todo"


def _unknown(reason: str) -> Standing:
    names = ("prepare", "train", "export")
    stages = [StageStatus(stage=name, status="unknown", detail=reason) for name in names]  # type: ignore[arg-type]
    return Standing([*stages, StageStatus(stage="serve", status="todo")], [reason])
