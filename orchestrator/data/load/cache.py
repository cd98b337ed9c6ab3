"""Remote shards on the local disk, within a byte limit, shared by all processes of a machine.

Fetching is handed in. A shard is named by its SHA-256, so a shard that several datasets hold is kept once. It is
fetched beside its name, checked by size and hash, and renamed: a file that exists is complete. What was used longest
ago goes first; what is in use does not go (locks of the kernel, which end with their process). A process that keeps a
shard mapped after its lease is safe too: on Linux a deleted file lives on until it is unmapped, but its bytes are then
counted no more.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from orchestrator.errors import DataError
from orchestrator.store import sha256_file

_SHARD, _PART, _LOCK = ".shard", ".part", ".lock"


class ShardCache:
    """A folder of shards, at most `limit_bytes` of them.

    Args:
        folder: on a local disk (locks of network file systems differ); made where it is absent.
        limit_bytes: of shards, those that are on their way among them.
        fetch: copies what a URI names to a path.
    """

    def __init__(self, folder: Path, limit_bytes: int, fetch: Callable[[str, Path], None]) -> None:
        self._folder, self._limit_bytes, self._fetch = folder, limit_bytes, fetch
        folder.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def open(self, uri: str, size_bytes: int, sha256: str) -> Iterator[Path]:
        """A lease on a shard: its path, which stays while the block runs. It is hashed when it is fetched.

        Raises:
            DataError: what was fetched is not what the manifest says, or what is in use leaves no room.
        """
        path = self._folder / f"{sha256}{_SHARD}"
        with self._lock_file(sha256) as lease:
            # Shared, and never waited for: two workers that need one shard hold it at the same time, to the end.
            fcntl.flock(lease, fcntl.LOCK_SH)
            if _size_bytes(path) != size_bytes:
                # Who fetches is settled by another lock: one that waited for the lease alone would wait for training.
                with self._lock_file(f"{sha256}.fetch") as fetching:
                    fcntl.flock(fetching, fcntl.LOCK_EX)
                    if _size_bytes(path) != size_bytes:
                        self._bring(uri, path, size_bytes, sha256)
            os.utime(path)
            yield path

    def used_bytes(self) -> int:
        """Bytes of all shards that are here or on their way."""
        with self._changing():
            return sum(map(_promised_bytes, self._held()))

    def _bring(self, uri: str, path: Path, size_bytes: int, sha256: str) -> None:
        """Fetch a shard whose lease and fetch lock are held."""
        part = self._folder / f"{sha256}.{size_bytes}{_PART}"
        with self._changing():
            path.unlink(missing_ok=True)
            part.unlink(missing_ok=True)
            self._make_room(uri, size_bytes)
            part.touch()  # from here on its bytes are counted
        try:
            self._fetch(uri, part)
            _verify(uri, part, size_bytes, sha256)
        except BaseException:
            with self._changing():
                part.unlink(missing_ok=True)
            raise
        with self._changing():
            part.replace(path)

    def _make_room(self, uri: str, size_bytes: int) -> None:
        """Delete what was used longest ago and is not in use, until there is room. While nothing else changes."""
        held = self._held()
        excess = sum(map(_promised_bytes, held)) + size_bytes - self._limit_bytes
        for path in sorted(held, key=_age):
            if excess <= 0:
                return
            with self._lock_file(path.name.partition(".")[0]) as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                excess -= _promised_bytes(path)
                path.unlink(missing_ok=True)
        if excess > 0:
            raise DataError(
                f"{uri} needs {size_bytes} bytes, but the cache of {self._limit_bytes} bytes has "
                f"{max(0, size_bytes - excess)} that are not in use ({self._folder})",
                fix=f"raise data.cache_bytes by {excess} or more",
            )

    def _held(self) -> list[Path]:
        return [path for path in self._folder.iterdir() if path.suffix in (_SHARD, _PART)]

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Which files there are changes under this lock alone."""
        with self._lock_file("cache") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _lock_file(self, name: str) -> Iterator[BinaryIO]:
        """Lock files are empty and stay: deleting one would let two processes hold two locks of one name."""
        with (self._folder / f"{name}{_LOCK}").open("ab") as lock:
            yield lock


def _verify(uri: str, path: Path, size_bytes: int, sha256: str) -> None:
    found_bytes = _size_bytes(path)
    found = sha256_file(path)
    if (found_bytes, found) != (size_bytes, sha256):
        raise DataError(
            f"{uri} is not the shard of its manifest: {size_bytes} bytes with SHA-256 {sha256} are asked for, "
            f"{found_bytes} bytes with {found} came",
            fix="run the same command again; if it fails again, the shard is damaged: prepare the dataset again",
        )


def _age(path: Path) -> tuple[int, str]:
    """What goes first: what a fetch left or is making (it may vanish at any time), then by last use."""
    return path.stat().st_mtime_ns if path.suffix == _SHARD else 0, path.name


def _promised_bytes(path: Path) -> int:
    """The size of a shard; of one on its way, what it will have."""
    return int(path.name.split(".")[1]) if path.suffix == _PART else max(0, _size_bytes(path))


def _size_bytes(path: Path) -> int:
    """-1 for a file that is absent."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1
