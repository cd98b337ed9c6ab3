"""Write a checkpoint from all ranks and publish it whole, or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
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

    @property
    def num_ranks(self) -> int:
        """Of the group."""
        ...

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, by rank, on every rank."""
        ...


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay; see `layout.to_delete`."""

    keep_last: int
    keep_every: int | None = None


@dataclass(frozen=True)
class Content:
    """What a checkpoint is made of."""

    manifest: dict[str, Any]
    fill: Callable[[Path], None]
    """Writes this rank's files into a folder."""
    complete: Callable[[Path], None]
    """Writes there what is made of all ranks' files: on rank 0, once they stand."""
    best_step: int | None = None
    """The checkpoint that retention spares."""


class CheckpointWriter:
    """Checkpoints of one attempt of one run. Its group is used by nobody else: it may write beside the training."""

    def __init__(self, run: Path, *, group: Group, attempt: Attempt, retention: Retention) -> None:
        self._folder = checkpoints_folder(run)
        self._group = group
        self._attempt = attempt
        self._retention = retention
        if group.rank == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            sweep(self._folder)

    def write(self, step: int, content: Content) -> Path:
        """Save step `step`. Collective: every rank calls it.

        Raises:
            FencedError: a newer attempt has begun.
            Exception: on every rank, if any rank could not write; nothing is published then.
        """
        final = step_folder(self._folder, step)
        tmp = Path(self._group.broadcast(str(new_tmp(final))))
        try:
            entries = self._fill(tmp, content)
            self._together(tmp, lambda: self._publish(tmp, final, content, entries))
        except BaseException:
            shutil.rmtree(tmp, ignore_errors=True)
            raise
        return final

    def _fill(self, tmp: Path, content: Content) -> list[dict[str, Any]]:
        """Every rank's files, then what is made of them, and the manifest's rows."""
        rank, rows = self._group.rank, list[dict[str, Any]]()

        def own() -> None:
            tmp.mkdir(parents=True, exist_ok=True)
            content.fill(tmp)

        def hashed() -> None:
            files = sorted(p for p in tmp.rglob("*") if p.is_file())
            rows.extend(file_entries(tmp, files[rank :: self._group.num_ranks]))  # the ranks share the work

        self._together(tmp, own)
        self._together(tmp, lambda: content.complete(tmp) if rank == 0 else None)
        self._together(tmp, hashed)
        return [row for rank_rows in self._group.gather(rows) for row in rank_rows]

    def _together(self, tmp: Path, act: Callable[[], None]) -> None:
        """Returns when all ranks have acted. One that fails tells the others, which would wait for it."""
        error: Exception | None = None
        try:
            act()
        except Exception as caught:  # noqa: BLE001 - raised below, once the ranks that would wait for this one know
            error = as_disk_error(caught, tmp) or caught
        errors = [e for e in self._group.gather(error) if e is not None]
        if errors:
            raise errors[0]

    def _publish(self, tmp: Path, final: Path, content: Content, entries: list[dict[str, Any]]) -> None:
        if self._group.rank == 0:
            self._attempt.check()
            commit(tmp, final, content.manifest, entries)
            self._retain(content.best_step)

    def _retain(self, best_step: int | None) -> None:
        committed = [s for p in self._folder.iterdir() if (s := step_of(p.name)) is not None and is_committed(p)]
        kept = self._retention
        gone = to_delete(committed, keep_last=kept.keep_last, keep_every=kept.keep_every, best_step=best_step)
        for step in gone:
            delete_committed(step_folder(self._folder, step))
