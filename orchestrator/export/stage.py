"""The stage: the export of a run's checkpoint, made once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.checkpoint.layout import step_folder
from orchestrator.checkpoint.reader import Checkpoint, newest_checkpoint
from orchestrator.data.dataset import Dataset, open_dataset
from orchestrator.errors import StoreError
from orchestrator.identity import wandb_run_id
from orchestrator.job import JobSpec
from orchestrator.job_file import environment, load_job
from orchestrator.runfolder import dataset_of
from orchestrator.store import is_committed, lock, storage_errors, sweep
from orchestrator.track.progress import say
from orchestrator.track.tracker import redact
from orchestrator.track.wandb import RunIdentity, open_tracker

if TYPE_CHECKING:
    from orchestrator.export.card import ExportFacts


@dataclass(frozen=True)
class Exported:
    """The end of the stage."""

    path: Path
    reused: bool


def export_checkpoint(
    job: JobSpec, checkpoint: Checkpoint, *, dataset: Dataset, at_end: Callable[[Callable[[], None]], object]
) -> Exported:
    """Export a verified checkpoint into its run, unless that was done before.

    W&B is told meanwhile; `at_end` gets what has to be called before the process ends, to wait for that.

    Raises:
        StoreError: the weights do not compute what the trainer computed, another process exports, or the disk is full.
    """
    run = checkpoint.path.parent.parent
    into = step_folder(run / "export", checkpoint.step)
    if is_committed(into):
        return Exported(into, reused=True)
    from orchestrator.export.write import write_export

    facts = _facts(job, run, checkpoint, dataset)
    alone = lock(run / "export.lock", holds=f"the export of {run.name}")
    with storage_errors(into, doing=f"exporting {run.name}"), alone:
        into.parent.mkdir(parents=True, exist_ok=True)
        sweep(into.parent, into.name)
        write_export(checkpoint=checkpoint.path, dataset=dataset.path, into=into, facts=facts)
    at_end(_track(job, run, into, checkpoint))
    return Exported(into, reused=False)


def export_run(run: Path, *, at_end: Callable[[Callable[[], None]], object]) -> Exported:
    """Export the newest checkpoint of a run that verifies.

    Raises:
        StoreError: the run has no checkpoint.
    """
    job = load_job(run / "job.yaml")
    checkpoint = newest_checkpoint(run, say=say)
    if checkpoint is None:
        raise StoreError(f"{run.name} has no checkpoint yet", fix="`slipway run JOB` trains it")
    return export_checkpoint(job, checkpoint, dataset=open_dataset(dataset_of(run)), at_end=at_end)


def newest_export(run: Path) -> Path:
    """The committed export of a run's latest step.

    Raises:
        StoreError: there is none.
    """
    found = sorted(p for p in (run / "export").glob("step-*") if is_committed(p))
    if not found:
        raise StoreError(
            f"{run.name} has no export yet", fix=f"make one of its newest checkpoint: slipway export {run}"
        )
    return found[-1]


def _facts(job: JobSpec, run: Path, checkpoint: Checkpoint, dataset: Dataset) -> ExportFacts:
    from orchestrator.export.card import ExportFacts

    sources, progress = dataset.manifest["sources"], checkpoint.progress
    paths = ", ".join(f"`{source.path}`" for source in job.data.sources)
    return ExportFacts(
        name=job.name,
        run=run.name,
        dataset=dataset.path.name,
        data=f"{paths}: {sources['files']:,} files, {sources['bytes']:,} bytes; {dataset.tokens('train'):,} tokens",
        tokens=progress.tokens,
        train_loss=progress.train_loss,
        validation_loss=progress.validation_loss,
        versions=checkpoint.manifest["versions"],
    )


def _track(job: JobSpec, run: Path, export: Path, checkpoint: Checkpoint) -> Callable[[], None]:
    """Add the export to the run in W&B: one run, whichever process speaks of it."""
    identity = RunIdentity(wandb_run_id(run.name), run.name, run)
    tracker = open_tracker(job.track.wandb, identity, config=redact(job.model_dump(mode="json")), environ=environment())
    progress = checkpoint.progress
    losses = {"train_loss": progress.train_loss, "validation_loss": progress.validation_loss}
    tracker.made_export(export, {"step": checkpoint.step, **losses})
    tracker.summarize({"export": export.name, **{f"final_{name}": value for name, value in losses.items()}})
    return tracker.close
