"""The stage: the export of a run's checkpoint, made once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.attempts import is_written
from orchestrator.checkpoint.layout import EXPORTED, step_folder
from orchestrator.checkpoint.reader import Checkpoint, best_checkpoint, committed_steps, read_progress
from orchestrator.data.dataset import Dataset, open_dataset
from orchestrator.errors import StoreError
from orchestrator.export.manifest import is_current
from orchestrator.identity import wandb_run_id
from orchestrator.job import JobSpec
from orchestrator.job_file import environment, load_job
from orchestrator.runfolder import dataset_of
from orchestrator.store import Store, is_committed, lock, storage_errors, sweep
from orchestrator.track.progress import say
from orchestrator.track.tracker import redact
from orchestrator.track.wandb import RunIdentity, open_tracker

if TYPE_CHECKING:
    from orchestrator.export.card import ExportFacts


_FILES = ("config.json", "probe.safetensors")
"""What no other folder of a store has both of."""
_OTHERS_S = 600.0


@dataclass(frozen=True)
class Exported:
    """The end of the stage."""

    path: Path
    reused: bool


def export_checkpoint(
    job: JobSpec, checkpoint: Checkpoint, *, dataset: Dataset, at_end: Callable[[Callable[[], None]], object]
) -> Exported:
    """Export a verified checkpoint into its run, unless that was done before by this version.

    W&B is told meanwhile; `at_end` gets what has to be called before the process ends, to wait for that.

    Raises:
        StoreError: the weights do not compute what the trainer computed, another process exports, or the disk is full.
    """
    run = checkpoint.path.parent.parent
    into = step_folder(run / "export", checkpoint.step)
    if is_committed(into) and is_current(into, attempt=checkpoint.manifest.get("attempt")):
        return Exported(into, reused=True)
    facts = _facts(job, run, checkpoint, dataset)
    # A service that follows the run may be exporting the same weights.
    alone = lock(run / "export.lock", holds=f"the export of {run.name}", wait_s=_OTHERS_S)
    with storage_errors(into, doing=f"exporting {run.name}"), alone:
        if is_committed(into) and is_current(into, attempt=checkpoint.manifest.get("attempt")):
            return Exported(into, reused=True)
        into.parent.mkdir(parents=True, exist_ok=True)
        sweep(into.parent, into.name)
        _write(job, checkpoint, dataset, into, facts)
    at_end(_track(job, run, into, checkpoint))
    return Exported(into, reused=False)


def _write(job: JobSpec, checkpoint: Checkpoint, dataset: Dataset, into: Path, facts: ExportFacts) -> None:
    if job.model.kind == "custom":
        from orchestrator.export.custom import write_custom_export

        write_custom_export(job=job, checkpoint=checkpoint.path, into=into, facts=facts)
        return
    from orchestrator.export.write import write_export

    write_export(checkpoint=checkpoint.path, dataset=dataset.path, into=into, facts=facts)


def export_run(run: Path, *, at_end: Callable[[Callable[[], None]], object]) -> Exported:
    """Export the checkpoint of a run that `chosen_checkpoint` takes; while the run is at work, once its weights stand.

    Raises:
        StoreError: the run has no checkpoint.
    """
    job, dataset = load_job(run / "job.yaml"), open_dataset(dataset_of(run))
    checkpoint = chosen_checkpoint(run, ahead=is_written(run))  # nobody finishes what one that was killed has left
    try:
        return export_checkpoint(job, checkpoint, dataset=dataset, at_end=at_end)
    except StoreError:
        if is_committed(checkpoint.path):
            raise
    # While it was read the checkpoint has come to stand, and its weights have moved there.
    return export_checkpoint(job, chosen_checkpoint(run), dataset=dataset, at_end=at_end)


def chosen_checkpoint(run: Path, *, ahead: bool = False) -> Checkpoint:
    """What of a run is exported and evaluated: the best by `train.evaluate.best`, else the newest that verifies.

    Of its files only those that both read are hashed. `ahead` is as in `best_checkpoint`.

    Raises:
        StoreError: the run has no checkpoint, or none verifies.
    """
    checkpoint = best_checkpoint(run, say=say, deep=EXPORTED, ahead=ahead)
    if checkpoint is None:
        raise StoreError(f"{run.name} has no checkpoint yet", fix="`slipway run JOB` trains it")
    return checkpoint


def export_at(store: Store, asked: str) -> Path | None:
    """The export that a path, a path in the store, or an import's name stands for; None if it is no export."""
    for candidate in (Path(asked), store.root / asked, store.exports / asked):
        if all((candidate / file).is_file() for file in _FILES) and is_committed(candidate):
            return candidate.resolve()
    return None


def named_run(store: Store, asked: str) -> Path:
    """The run that was named where an export could have been, once `export_at` has found none.

    Raises:
        StoreError: there is no such run either.
    """
    try:
        return store.find_run(asked)
    except StoreError as error:
        fix = "give a run, or the folder of an export; `slipway runs` lists them"
        if (Path(asked) / _FILES[0]).is_file():
            fix = f"`slipway import {asked}` makes an export of a Hugging Face folder"
        raise StoreError(error.message, fix=fix) from None


def write_gguf_beside(made: Exported) -> Path:
    """An export as a GGUF file, `step-N.gguf` beside its folder, which stays as its manifest says. Made once.

    Raises:
        StoreError: llama.cpp cannot compute this model, another process exports, or the disk is full.
    """
    from orchestrator.export.gguf import write_gguf

    into = made.path.with_name(f"{made.path.name}.gguf")
    run = made.path.parent.parent
    if made.reused and into.is_file():
        return into
    alone = lock(run / "export.lock", holds=f"the export of {run.name}")
    with storage_errors(into, doing=f"writing {into.name}"), alone:
        return write_gguf(made.path, into)


def newest_export(run: Path) -> Path:
    """The committed export of a run's best step, where a metric has chosen one; else of its latest.

    Raises:
        StoreError: there is none.
    """
    saved = committed_steps(run)
    best = read_progress(saved[-1]).best_step if saved else None
    if best is not None and is_committed(chosen := step_folder(run / "export", best)):
        return chosen
    found = sorted(p for p in (run / "export").glob("step-*") if is_committed(p))
    if not found:
        raise StoreError(
            f"{run.name} has no export yet", fix=f"make one of its newest checkpoint: slipway export {run}"
        )
    return found[-1]


def _facts(job: JobSpec, run: Path, checkpoint: Checkpoint, dataset: Dataset) -> ExportFacts:
    from orchestrator.export.card import ExportFacts

    sources, progress = dataset.manifest["sources"], checkpoint.progress
    places = ", ".join(f"`{place}`" for place in [s.path for s in job.data.sources] or sources["names"])
    amount = f"{sources['files']:,} files, {sources['bytes']:,} bytes; " if sources["files"] else ""
    train = dataset.manifest["splits"]["train"]
    read = f"{train['documents']:,} rows" if job.data.kind == "columns" else f"{train['tokens']:,} tokens"
    return ExportFacts(
        name=job.name,
        run=run.name,
        dataset=dataset.path.name,
        data=f"{places}: {amount}{read}",
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
