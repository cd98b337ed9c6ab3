"""How an export did on its run's validation split: what a gate compares. Imports no torch."""

from __future__ import annotations

import contextlib
from pathlib import Path

from orchestrator.checkpoint.layout import Progress, checkpoints_folder, step_folder, step_of, weights_folder
from orchestrator.checkpoint.reader import read_progress
from orchestrator.errors import StoreError
from orchestrator.store import is_committed
from orchestrator.track.metric_log import read_metrics
from orchestrator.track.metrics import EVAL_LOSS, LOSS, STEP

_EVALUATED = "eval/"


def scores_of(export: Path) -> dict[str, float]:
    """Scores by name, such as `validation_loss`: of the checkpoint that the export was made of; empty of an import.

    Where that checkpoint is gone by now, those that the run's metrics have of its step.

    Raises:
        StoreError: the checkpoint is not readable.
    """
    run, step = export.parent.parent, step_of(export.name)
    if step is None or not (run / "job.yaml").is_file():
        return {}
    if (progress := _progress_of(run, step)) is not None:
        losses = {"train_loss": progress.train_loss, "validation_loss": progress.validation_loss}
        return {**progress.scores, **{name: value for name, value in losses.items() if value is not None}}
    line = next((line for line in read_metrics(run) if line.get(STEP) == step), {})
    scores = {name.removeprefix(_EVALUATED): value for name, value in line.items() if name.startswith(_EVALUATED)}
    losses = {"train_loss": line.get(LOSS), "validation_loss": line.get(EVAL_LOSS)}
    return {name: float(value) for name, value in {**scores, **losses}.items() if value is not None}


def _progress_of(run: Path, step: int) -> Progress | None:
    """Of a checkpoint, or of the weights that go before it; None where neither is there any more."""
    stands, ahead = step_folder(checkpoints_folder(run), step), step_folder(weights_folder(run), step)
    if not is_committed(stands) and is_committed(ahead):
        with contextlib.suppress(StoreError):  # the checkpoint stands by now
            return read_progress(ahead)
    return read_progress(stands) if is_committed(stands) else None
