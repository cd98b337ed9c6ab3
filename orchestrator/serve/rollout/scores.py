"""How an export did on its run's validation split: what a gate compares. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from orchestrator.checkpoint.layout import checkpoints_folder, step_folder, step_of
from orchestrator.checkpoint.reader import read_progress
from orchestrator.store import is_committed
from orchestrator.track.metric_log import read_metrics


def scores_of(export: Path) -> dict[str, float]:
    """Scores by name, such as `validation_loss`: of the checkpoint that the export was made of; empty of an import.

    Where that checkpoint is gone by now, those that the run's metrics have of its step.

    Raises:
        StoreError: the checkpoint is not readable.
    """
    run, step = export.parent.parent, step_of(export.name)
    if step is None or not (run / "job.yaml").is_file():
        return {}
    if is_committed(checkpoint := step_folder(checkpoints_folder(run), step)):
        progress = read_progress(checkpoint)
        losses = {"train_loss": progress.train_loss, "validation_loss": progress.validation_loss}
        return {**progress.scores, **{name: value for name, value in losses.items() if value is not None}}
    found: dict[str, float] = {}
    for line in read_metrics(run):
        if line.get("step") == step:
            found |= {name: float(value) for name, value in line.items() if isinstance(value, int | float)}
    return found
