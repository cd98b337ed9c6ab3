"""What of a job is in the store already: `plan` prints it beside the plan, `runs` for every run. Imports no torch."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.attempts import is_written
from orchestrator.checkpoint.layout import Progress, step_folder
from orchestrator.checkpoint.origin import Origin, find_origin
from orchestrator.checkpoint.reader import committed_steps, read_progress
from orchestrator.data.sources.file import is_remote
from orchestrator.data.sources.listing import Listing, ListingTooSlowError, list_sources, resolve_path
from orchestrator.errors import DataError, SlipwayError
from orchestrator.identity import content_hash, dataset_hash, mixture_hash, run_hash
from orchestrator.job import JobSpec
from orchestrator.job_file import environment, load_job
from orchestrator.plan import Stage, StageStatus
from orchestrator.plan.speed import cost_of
from orchestrator.store import Store, is_committed, sha256_file
from orchestrator.track import metrics
from orchestrator.track.goodput import read_ledger
from orchestrator.track.metric_log import read_metrics

_LISTING_LIMIT_S = 0.2
_NAMED = 5


@dataclass(frozen=True)
class Standing:
    """The stages of a job, and what a user should know before it runs."""

    stages: list[StageStatus]
    warnings: list[str]


def dataset_identity(job: JobSpec, listing: Listing, store: Store) -> str:
    """The hash of the dataset that a job makes of a listing, or of datasets in the store.

    Raises:
        DataError: the given tokenizer is not there, or a dataset of a mixture is not complete.
        StoreError: a dataset of a mixture is not there.
    """
    if job.data.datasets:
        from orchestrator.data.mixing import find_components

        return mixture_hash(job, [str(found.manifest["hash"]) for found in find_components(job.data, store)])
    path = job.data.tokenizer.path
    sha256 = _given_tokenizer_sha256(resolve_path(path, environment())) if path else None
    template = job.data.tokenizer.chat_template
    in_a_file = template not in (None, "chatml") and "{{" not in str(template) and "{%" not in str(template)
    template_sha256 = _sha256(Path(resolve_path(str(template), environment())), "chat_template") if in_a_file else None
    against = listing.against_rows()
    return dataset_hash(job, listing.rows(), sha256, against=against, template_sha256=template_sha256)


def prepared_dataset(job: JobSpec, store: Store) -> Path:
    """The folder of a job's dataset.

    Raises:
        DataError: it is not prepared.
    """
    path = store.dataset(job.name, dataset_identity(job, list_sources(job.data, environment()), store))
    if not is_committed(path):
        raise DataError(f"the dataset of {job.name} is not prepared in {store.root}", fix="run `slipway prepare` first")
    return path


def _given_tokenizer_sha256(path: str) -> str:
    """Of the file, or of all that is read of a Hugging Face folder."""
    place = Path(path)
    names = ("tokenizer.json", "special_tokens_map.json", "tokenizer_config.json", "chat_template.jinja")
    files = [place / name for name in names if (place / name).exists()] if place.is_dir() else [place]
    digests = [_sha256(file, "path") for file in files]
    return digests[0] if len(digests) == 1 else content_hash(digests)


def _sha256(file: Path, key: str) -> str:
    try:
        return sha256_file(file)
    except OSError as error:
        what = "tokenizer" if key == "path" else "chat template"
        raise DataError(
            f"the {what} {file} cannot be read: {error.strerror}", fix=f"check data.tokenizer.{key}"
        ) from None


def given_vocabulary(job: JobSpec) -> int | None:
    """Size of the tokenizer that a job gives as a file, where that file is there; None otherwise."""
    if job.data.tokenizer.path is None:
        return None
    try:
        path = Path(resolve_path(job.data.tokenizer.path, environment()))
        file = path / "tokenizer.json" if path.is_dir() else path
        tokenizer = json.loads(file.read_text(encoding="utf-8"))
        added = (token["id"] for token in tokenizer.get("added_tokens", []))
        return 1 + int(max(*tokenizer["model"]["vocab"].values(), *added))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SlipwayError):
        return None  # `prepare` says what is wrong with it; a plan only lacks the number


def standing(job: JobSpec, store: Store) -> Standing:
    """Which stages are done, to do, or unknown; needs no data to be present."""
    try:
        if any(is_remote(d.dataset) for d in job.data.datasets):
            raise ListingTooSlowError
        listing = list_sources(job.data, environment(), limit_s=_LISTING_LIMIT_S)
        identity = dataset_identity(job, listing, store)
    except ListingTooSlowError:
        return _unknown(job, f"listing the sources takes over {_LISTING_LIMIT_S} s, or they are on an object store")
    except SlipwayError as error:
        return _unknown(job, error.message)
    warnings = [f"no file matches {source}" for source in listing.unmatched]
    warnings += [f"{refused} is left out" for refused in listing.refused[:_NAMED]]
    dataset = store.dataset(job.name, identity)
    prepared = StageStatus(stage="prepare", status=_status(dataset), path=store.relative(dataset))
    return Standing([prepared, *_later_stages(job, store, identity)], warnings)


def _later_stages(job: JobSpec, store: Store, identity: str) -> list[StageStatus]:
    if job.train is None:
        return []
    try:
        origin = origin_of_job(job, store)
    except SlipwayError as error:
        return [
            StageStatus(stage=name, status="unknown", detail=error.message)
            for name in ("train", "export", *_served(job))
        ]
    run = store.run(job.name, run_hash(job, identity, origin=origin.identity if origin else None))
    begun = committed_steps(run)
    progress = read_progress(begun[-1]) if begun else Progress()
    ended = progress.is_end(job.train.steps)
    export = step_folder(run / "export", (progress.best_step or progress.step) if ended else job.train.steps)
    detail = f"continues after step {progress.step}" if begun and not ended else None
    return [
        StageStatus(stage="train", status="done" if ended else "todo", path=store.relative(run), detail=detail),
        StageStatus(stage="export", status=_status(export), path=store.relative(export)),
        *(StageStatus(stage=name, status="todo") for name in _served(job)),
    ]


def origin_of_job(job: JobSpec, store: Store) -> Origin | None:
    """The weights that `train.from` names; None where weights are drawn.

    Raises:
        JobError: there is no such thing.
        StoreError: it is not complete.
    """
    asked = job.train.from_ if job.train else None
    return find_origin(asked, store) if asked else None


def describe_run(run: Path, store: Store) -> dict[str, Any]:
    """One row of `slipway runs`."""
    row: dict[str, Any] = {"run": store.relative(run), "name": run.name}
    try:
        job, steps = _asked(run)
        saved = committed_steps(run)
        progress = read_progress(saved[-1]) if saved else Progress()
    except SlipwayError as error:
        return {**row, "state": "unreadable", "error": error.message}
    lines = list(read_metrics(run))
    evaluated = [line[metrics.EVAL_LOSS] for line in lines if metrics.EVAL_LOSS in line]
    step, ended = progress.step, progress.is_end(steps)
    exports = sorted(p for p in (run / "export").glob("step-*") if is_committed(p))
    state = "exported" if exports else "trained" if ended else "started" if lines else "prepared"
    return {
        **row,
        "job": job,
        "state": state,
        "step": step,
        "steps": steps,
        "train_loss": lines[-1][metrics.LOSS] if lines else None,
        "validation_loss": evaluated[-1] if evaluated else None,
        "tokens_per_s": metrics.typical_tokens_per_s(lines),
        "export": store.relative(exports[-1]) if exports else None,
    }


def _asked(run: Path) -> tuple[str, int]:
    """The name of a run's job, and its steps: of the plan, which is read in a hundredth of the job file's time."""
    try:
        plan = json.loads((run / "plan.json").read_text(encoding="utf-8"))
        return str(plan["job"]), int(plan["steps"])
    except (OSError, ValueError, KeyError, TypeError):
        job = load_job(run / "job.yaml")
        return job.name, job.training.steps


def account_for_run(run: Path, store: Store) -> dict[str, Any]:
    """`slipway runs show`: the row of `slipway runs`, and where the time of the run's workers went.

    Raises:
        JobError: the run's job file is not of this version.
    """
    job = load_job(run / "job.yaml")
    is_alive = is_written(run)
    ledger = read_ledger(run, compiled=job.training.compile, now=time.time() if is_alive else None)
    hours, w = ledger.worker_s / 3600, job.training.workers
    cost = cost_of(job, 1, hours)
    return {
        **describe_run(run, store),
        "alive": is_alive,
        "attempts": ledger.attempts,
        "workers": ledger.workers,
        "wall_s": round(ledger.wall_s, 3),
        "worker_s": round(ledger.worker_s, 3),
        "gpu_hours": round(hours * w.gpus, 6),
        "cpu_hours": round(hours * w.cpus, 6),
        "cost": None if cost is None else round(cost, 6),
        "goodput": ledger.goodput(),
        "restarts": [restart.to_json() for restart in ledger.restarts],
    }


def _status(folder: Path) -> Any:
    return "done" if is_committed(folder) else "todo"


def _unknown(job: JobSpec, reason: str) -> Standing:
    names: tuple[Stage, ...] = ("prepare", "train", "export") if job.train else ("prepare",)
    stages = [StageStatus(stage=name, status="unknown", detail=reason) for name in names]
    return Standing([*stages, *(StageStatus(stage=name, status="todo") for name in _served(job))], [reason])


def _served(job: JobSpec) -> list[Stage]:
    return ["serve"] if job.train is not None else []
