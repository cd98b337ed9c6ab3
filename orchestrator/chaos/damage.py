"""Faults of the disk: a checkpoint that is cut or flipped, and no room left."""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.checkpoint.layout import step_of
from orchestrator.checkpoint.reader import committed_steps, read_checkpoint
from orchestrator.errors import JobError, StoreError
from orchestrator.plan import human_bytes
from orchestrator.store import MARKER, read_manifest

LEFT_BYTES = 64 << 10
"""Less than this is free of a full disk."""
_LEFT_ALONE_BYTES = LEFT_BYTES // 2


class NotNowError(Exception):
    """A fault cannot be given at this moment; it may be later."""


@dataclass(frozen=True)
class Damage:
    """A checkpoint that a drill has damaged."""

    folder: Path
    at: float
    """By `time.time`."""
    file: str
    marker: tuple[int, int] | None
    """Of the committed folder: another one means that the step was saved anew."""

    @property
    def step(self) -> int:
        """Of the checkpoint."""
        return step_of(self.folder.name) or 0

    @property
    def stands(self) -> bool:
        """Whether the damaged folder is still there."""
        return self.marker is not None and _marker(self.folder) == self.marker


def tear(run: Path, rng: random.Random) -> Damage:
    """Cut one file of the newest checkpoint short.

    Raises:
        NotNowError: there is no checkpoint that may be damaged.
    """

    def cut(path: Path) -> None:
        os.truncate(path, rng.randrange(path.stat().st_size))

    return _damage(run, rng, cut)


def flip(run: Path, rng: random.Random) -> Damage:
    """Turn over one bit of one file of the newest checkpoint.

    Raises:
        NotNowError: there is no checkpoint that may be damaged.
    """

    def turn(path: Path) -> None:
        at, bit = rng.randrange(path.stat().st_size), 1 << rng.randrange(8)
        with path.open("r+b") as file:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ bit]))

    return _damage(run, rng, turn)


def refuse_to_fill(folder: Path, most_bytes: int | None, *, default_bytes: int) -> None:
    """Say why a file system is not filled up.

    Raises:
        JobError: it has more room than `most_bytes` (None: the default), or it is the system's own.
    """
    option = "--fill-at-most"
    if most_bytes is None and folder.stat().st_dev == Path("/").stat().st_dev:
        raise JobError(
            f"{folder} is on the file system of the system itself, and filling that harms more than the run",
            fix=f"put the store on one of its own (mount -t tmpfs -o size=1g tmpfs DIR), or give {option} SIZE",
        )
    free, most = _free_bytes(folder), most_bytes or default_bytes
    if free > most:
        raise JobError(
            f"{human_bytes(free)} are free where {folder} is, and at most {human_bytes(most)} would be filled",
            fix=f"put the store on a small file system, or give {option} {human_bytes(free * 1.1).replace(' ', '')}",
        )


@contextlib.contextmanager
def full_disk(folder: Path) -> Iterator[Callable[[], None]]:
    """Leave less than `LEFT_BYTES` free, as long as the block lasts; what it yields takes what was freed meanwhile.

    The ballast has no name: however this process ends, it is gone.
    """
    with tempfile.TemporaryFile(dir=folder) as ballast:

        def fill() -> None:
            while (free := _free_bytes(folder)) >= LEFT_BYTES:
                try:
                    os.posix_fallocate(ballast.fileno(), os.fstat(ballast.fileno()).st_size, free - _LEFT_ALONE_BYTES)
                except OSError:  # somebody was quicker, or the last blocks are not for us
                    return

        fill()
        yield fill


def hold(seconds: float, again: Callable[[], object]) -> None:
    """Do something five times a second for some seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        again()
        time.sleep(0.2)


def _damage(run: Path, rng: random.Random, how: Callable[[Path], None]) -> Damage:
    """The run must have another one to go on from, whatever comes next."""
    try:
        newest, *others = reversed(committed_steps(run))
    except ValueError:
        raise NotNowError("there is no checkpoint yet") from None
    if not _verifies(newest):
        raise NotNowError(f"{newest.name} is damaged already")
    if not any(map(_verifies, others)):
        raise NotNowError(f"{newest.name} is the only checkpoint that verifies")
    try:
        names = sorted(str(row["path"]) for row in read_manifest(newest)["files"] if row["bytes"])
        path = newest / rng.choice(names)
        if path.stat().st_nlink > 1:
            raise NotNowError(f"{newest.name}/{path.name} has another name too: it would be damaged with it")
        damage = Damage(newest, time.time(), path.name, _marker(newest))
        how(path)
    except (OSError, StoreError):
        raise NotNowError(f"{newest.name} has just been given up") from None
    return damage


def _verifies(folder: Path) -> bool:
    try:
        read_checkpoint(folder)
    except (OSError, StoreError):
        return False
    return True


def _marker(folder: Path) -> tuple[int, int] | None:
    try:
        found = (folder / MARKER).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _free_bytes(folder: Path) -> int:
    found = os.statvfs(folder)
    return (found.f_bfree if os.geteuid() == 0 else found.f_bavail) * found.f_frsize
