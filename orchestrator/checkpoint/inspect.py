"""What checkpoints a run has, and whether each is whole: `slipway checkpoints`. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from orchestrator.checkpoint.layout import step_of
from orchestrator.checkpoint.reader import Checkpoint, committed_steps, read_checkpoint
from orchestrator.errors import StoreError
from orchestrator.store import MANIFEST


def checkpoint_rows(run: Path, *, deep: bool) -> Iterator[dict[str, Any]]:
    """A row for each committed checkpoint, oldest first; `problem` is null where a run can go on from it.

    Args:
        deep: every byte is read; else the sizes of the files are looked at.
    """
    for folder in committed_steps(run):
        row: dict[str, Any] = {
            "checkpoint": folder.name,
            "step": step_of(folder.name),
            "made": _time_of(folder / MANIFEST),
            "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        }
        try:
            yield {**row, **_facts(read_checkpoint(folder, deep=deep)), "problem": None}
        except StoreError as error:
            yield {**row, "problem": error.message}


def _facts(checkpoint: Checkpoint) -> dict[str, Any]:
    manifest, progress = checkpoint.manifest, checkpoint.progress
    return {
        "workers": manifest["world_size"],
        "zero_stage": manifest["zero_stage"],
        "tokens": progress.tokens,
        "train_loss": progress.train_loss,
        "validation_loss": progress.validation_loss,
        "best": progress.best_step == checkpoint.step,
    }


def _time_of(path: Path) -> str | None:
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, timezone.utc).isoformat(timespec="seconds")
    except OSError:
        return None
