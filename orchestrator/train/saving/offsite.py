"""Copies of checkpoints in an object store, made beside the training (`train.checkpoint.copy_to`)."""

from __future__ import annotations

from pathlib import Path

from orchestrator.attempts import Attempt
from orchestrator.checkpoint.offsite import bring_back, copy_checkpoint
from orchestrator.checkpoint.writer import Retention
from orchestrator.errors import StoreError
from orchestrator.job import JobSpec
from orchestrator.track import events
from orchestrator.track.progress import say
from orchestrator.train.saving.background import Background


def take_back(job: JobSpec, run: Path) -> None:
    """Before an attempt: what the disk has lost comes back from the copies, if there are any.

    Raises:
        StorageError: the object store does not answer.
    """
    if job.training.checkpoint.copy_to is not None:
        bring_back(run, job.training.checkpoint.copy_to, say=say)


class Copier:
    """Of one attempt, on rank 0. A copy that fails is told, and ends nothing: the checkpoint on disk stands."""

    def __init__(self, attempt: Attempt, uri: str, retention: Retention) -> None:
        self._attempt, self._uri, self._retention = attempt, uri, retention
        self._background = Background("offsite")
        self._newest: tuple[Path, int | None] | None = None
        self._copied: Path | None = None

    def stands(self, folder: Path, best_step: int | None) -> None:
        """A checkpoint stands: copy it, unless one is still on its way. The next is newer."""
        self._newest = (folder, best_step)
        if self._background.wait(limit_s=0.0):
            self._background.start(self._copy)

    def finish(self) -> None:
        """Returns when the newest checkpoint is copied, or has failed to be."""
        self._background.wait()
        if self._newest is not None and self._copied != self._newest[0]:
            self._copy()

    def _copy(self) -> None:
        if self._newest is None:
            return
        folder, best_step = self._newest
        self._copied = folder
        run = self._attempt.run
        try:
            self._attempt.check()
            copy_checkpoint(run, folder, self._uri, retention=self._retention, best_step=best_step)
        except (StoreError, OSError) as error:
            if not folder.is_dir():  # retention was faster: a newer one stands
                return
            say(f"{folder.name} is not copied: {error}")
            events.record(run, "copy-failed", attempt=self._attempt.number, path=folder.name, cause=str(error))
        else:
            events.record(run, "copied", attempt=self._attempt.number, path=folder.name)
