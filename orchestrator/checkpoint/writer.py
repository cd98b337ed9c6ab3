"""Write a checkpoint from all ranks and publish it whole, or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from orchestrator.attempts import Attempt
from orchestrator.checkpoint.layout import checkpoints_folder, step_folder, step_of, to_delete
from orchestrator.store import as_disk_error, commit, delete_committed, file_entries, is_committed, new_tmp, sweep


class Group(Protocol):
    """The ranks that write together."""

    @property
    def rank(self) -> int:
        """This process."""
        ...

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, by rank, on every rank."""
        ...


class CheckpointWriter:
    """Checkpoints of one attempt of one run."""

    def __init__(self, run: Path, *, group: Group, attempt: Attempt, keep_last: int) -> None:
        self._folder = checkpoints_folder(run)
        self._group = group
        self._attempt = attempt
        self._keep_last = keep_last
        if group.rank == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            sweep(self._folder)

    def write(
        self, step: int, *, fill: Callable[[Path], None], manifest: dict[str, Any], best_step: int | None = None
    ) -> Path:
        """Save step `step`. Collective: every rank calls it, `fill` writes this rank's files.

        Older ones go by retention, but never the one of `best_step`.

        Raises:
            FencedError: a newer attempt has begun.
            Exception: on every rank, if any rank could not write; nothing is published then.
        """
        final = step_folder(self._folder, step)
        tmp = Path(self._group.broadcast(str(new_tmp(final))))
        try:
            entries = self._fill(tmp, fill)
            if self._group.rank == 0:
                self._attempt.check()
                commit(tmp, final, manifest, entries)
                self._retain(best_step)
        except BaseException:
            shutil.rmtree(tmp, ignore_errors=True)
            raise
        self._group.broadcast(None)  # no rank goes on before the checkpoint stands
        return final

    def _fill(self, tmp: Path, fill: Callable[[Path], None]) -> list[dict[str, Any]]:
        """Every rank's files and their manifest rows. A rank that fails tells the others, which would wait for it."""
        error: Exception | None = None
        rows: list[dict[str, Any]] = []
        tmp.mkdir(parents=True, exist_ok=True)
        try:
            fill(tmp)
        except Exception as caught:  # noqa: BLE001 - raised below, once the ranks that would wait for this one know
            error = as_disk_error(caught, tmp) or caught
        errors = [e for e in self._group.gather(error) if e is not None]
        if not errors:
            files = [p for p in tmp.rglob("*") if p.is_file()]
            size = len(self._group.gather(None))
            # The ranks share the hashing: after the gather above, everybody sees every file.
            rows = file_entries(tmp, sorted(files)[self._group.rank :: size])
            return [row for rank_rows in self._group.gather(rows) for row in rank_rows]
        raise errors[0]

    def _retain(self, best_step: int | None) -> None:
        committed = [s for p in self._folder.iterdir() if (s := step_of(p.name)) is not None and is_committed(p)]
        for step in to_delete(committed, keep_last=self._keep_last, best_step=best_step):
            delete_committed(step_folder(self._folder, step))
