"""Write a checkpoint from all ranks and publish it whole, or not at all."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from orchestrator.attempts import Attempt
from orchestrator.checkpoint.layout import checkpoints_folder, step_folder, step_of, to_delete, weights_folder
from orchestrator.errors import StoreError
from orchestrator.store import (
    as_disk_error,
    commit,
    delete_committed,
    file_entries,
    fsync,
    is_committed,
    new_tmp,
    read_manifest,
    sweep,
    writing,
)


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
    """What a checkpoint is made of. The weights come first, so that an export need not wait for the rest."""

    manifest: dict[str, Any]
    share: Callable[[Path], None]
    """Writes what this rank has of the weights into a folder that goes again."""
    weigh: Callable[[Path, Path], None]
    """Makes `layout.EXPORTED` of the folder of all ranks' shares, in another one: on rank 0, once the shares stand."""
    fill: Callable[[Path], None]
    """Writes this rank's other files into a folder."""
    best_step: int | None = None
    """The checkpoint that retention spares."""


class CheckpointWriter:
    """Checkpoints of one attempt of one run. Its group is used by nobody else: it may write beside the training."""

    def __init__(self, run: Path, *, group: Group, attempt: Attempt, retention: Retention) -> None:
        self._folder = checkpoints_folder(run)
        self._weights = weights_folder(run)
        self._group = group
        self._attempt = attempt
        self._retention = retention
        if group.rank == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            sweep(self._folder)
            self._forget_weights()

    def write(self, step: int, content: Content) -> Path:
        """Save step `step`. Collective: every rank calls it.

        Raises:
            FencedError: a newer attempt has begun.
            Exception: on every rank, if any rank could not write; nothing is published then.
        """
        final = step_folder(self._folder, step)
        tmp = Path(self._group.broadcast(str(new_tmp(final))))
        try:
            weights = self._weigh(tmp, step, content)
            entries = self._fill(tmp, step, content, weights)
            self._together(tmp, lambda: self._publish(tmp, final, content, entries))
        except BaseException:
            shutil.rmtree(tmp, ignore_errors=True)
            raise
        finally:
            # Of a newer attempt's nothing is removed; and what cannot be read now fails no checkpoint on rank 0 alone.
            with contextlib.suppress(StoreError, OSError):
                if self._group.rank == 0:
                    self._attempt.check()
                    self._forget_weights()
        return final

    def _weigh(self, tmp: Path, step: int, content: Content) -> list[dict[str, Any]]:
        """Publish the weights in a folder of their own; the manifest's rows of it."""
        shares, ready = tmp / "shares", step_folder(self._weights, step)
        rows: list[dict[str, Any]] = []

        def own() -> None:
            shares.mkdir(parents=True, exist_ok=True)
            content.share(shares)

        def publish() -> None:
            if self._group.rank != 0:
                return
            with writing(ready) as aside:
                content.weigh(shares, aside)
                self._attempt.check()
                commit(aside, ready, content.manifest)
            rows.extend(read_manifest(ready)["files"])
            shutil.rmtree(shares)

        self._together(tmp, own)
        self._together(tmp, publish)
        return list(self._group.broadcast(rows))

    def _fill(self, tmp: Path, step: int, content: Content, weights: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Every rank's other files beside the weights; the manifest's rows of all."""
        rank, rows = self._group.rank, list[dict[str, Any]]()
        known = {tmp / row["path"] for row in weights}

        def own() -> None:
            for path in known if rank == 0 else ():
                _link(step_folder(self._weights, step) / path.name, path)
            content.fill(tmp)

        def hashed() -> None:
            files = sorted(p for p in tmp.rglob("*") if p.is_file() and p not in known)
            rows.extend(file_entries(tmp, files[rank :: self._group.num_ranks]))  # the ranks share the work

        self._together(tmp, own)
        self._together(tmp, hashed)
        return weights + [row for rank_rows in self._group.gather(rows) for row in rank_rows]

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

    def _forget_weights(self) -> None:
        """They stand in a checkpoint, or there will be none: what was interrupted is computed again."""
        sweep(self._weights)
        for folder in self._weights.glob("*"):
            with contextlib.suppress(OSError):  # NFS keeps what somebody still reads: the next save tries again
                delete_committed(folder)


def _link(path: Path, name: Path) -> None:
    """The same file under another name; a copy where the file system has one name a file."""
    try:
        name.hardlink_to(path)
    except OSError:
        shutil.copyfile(path, name)
        fsync(name)
