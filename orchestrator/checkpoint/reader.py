"""Find the newest checkpoint that verifies."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.checkpoint.layout import (
    PROGRESS,
    Progress,
    checkpoints_folder,
    step_folder,
    step_of,
    weights_folder,
)
from orchestrator.errors import StoreError
from orchestrator.store import is_committed, verify_folder


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint that was verified."""

    path: Path
    manifest: dict[str, Any]
    progress: Progress

    @property
    def step(self) -> int:
        """Finished steps."""
        return self.progress.step


def committed_steps(run: Path) -> list[Path]:
    """The committed checkpoints of a run, oldest first; not yet verified."""
    folder = checkpoints_folder(run)
    found = folder.iterdir() if folder.is_dir() else iter(())
    return sorted(p for p in found if step_of(p.name) is not None and is_committed(p))


def newest_weights(run: Path) -> Path | None:
    """The newest weights of a run: those of a checkpoint that is still being written, or its newest checkpoint."""
    folder = weights_folder(run)
    ahead = [p for p in (folder.iterdir() if folder.is_dir() else ()) if step_of(p.name) and is_committed(p)]
    return max([*committed_steps(run)[-1:], *ahead], key=lambda path: step_of(path.name) or 0, default=None)


def newest_checkpoint(
    run: Path, *, say: Callable[[str], None], deep: bool | Collection[str] = True
) -> Checkpoint | None:
    """The newest checkpoint that verifies; says why one was passed over. None if the run has not committed any.

    `deep` says what of it is read, as `verify_folder` has it.

    Raises:
        StoreError: there are checkpoints, and none verifies.
    """
    folders = committed_steps(run)
    problem: StoreError | None = None
    for folder in reversed(folders):
        try:
            return read_checkpoint(folder, deep=deep)
        except StoreError as error:
            say(f"passing over {folder.name}: {error.message}")
            problem = problem or error
    if problem is not None:
        raise StoreError(
            f"no checkpoint of {run.name} verifies; the newest: {problem.message}",
            fix=f"delete {checkpoints_folder(run)} to start this run anew",
        )
    return None


def best_checkpoint(
    run: Path, *, say: Callable[[str], None], deep: bool | Collection[str] = True, ahead: bool = False
) -> Checkpoint | None:
    """The checkpoint that a metric has chosen, if one is chosen by it and verifies; else the newest that verifies.

    With `ahead` the newest may be one of which the weights alone stand so far: good for `layout.EXPORTED`.

    Raises:
        StoreError: as `newest_checkpoint`.
    """
    newest = (_ahead(run) if ahead else None) or newest_checkpoint(run, say=say, deep=deep)
    if newest is None or newest.progress.best_step in (None, newest.step):
        return newest
    best = step_folder(checkpoints_folder(run), newest.progress.best_step or 0)
    try:
        return read_checkpoint(best, deep=deep)
    except StoreError as error:
        say(f"passing over the best, {best.name}: {error.message}")
        return newest


def _ahead(run: Path) -> Checkpoint | None:
    """The weights of a checkpoint that is still being written; None where there are none, or none any more."""
    newest = newest_weights(run)
    if newest is None or newest.parent != weights_folder(run):
        return None
    try:
        return read_checkpoint(newest)
    except (StoreError, OSError):  # the checkpoint stands by now, or was given up
        return None


def read_checkpoint(folder: Path, *, deep: bool | Collection[str] = True) -> Checkpoint:
    """Verify a checkpoint: every byte of it, or of some of its files, and the sizes of all.

    Raises:
        StoreError: a file is absent or was altered; names it.
    """
    manifest = verify_folder(folder, deep=deep)
    return Checkpoint(folder, manifest, read_progress(folder))


def read_progress(folder: Path) -> Progress:
    """How far a committed checkpoint is, without verifying the rest of it.

    Raises:
        StoreError: it is not readable.
    """
    try:
        return Progress.model_validate(json.loads((folder / PROGRESS).read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError) as error:
        raise StoreError(f"{folder / PROGRESS} is not readable: {error}", fix=f"delete {folder}") from None
