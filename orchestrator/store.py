"""Where datasets, runs and exports live: publish whole folders or nothing, verify before use, one writer at a time.

A folder exists for a reader once its `COMMITTED` marker does. The recipe: write into `X.tmp-UUID/`; put size and
SHA-256 of every file into `manifest.json`; flush files and folder; rename; flush the parent; marker last.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import SlipwayError, StoreError, storage_error

MARKER = "COMMITTED"
MANIFEST = "manifest.json"
_TMP = ".tmp-"
_HASH_BLOCK_BYTES = 1 << 20
_ROW_KEYS = {"path", "bytes", "sha256"}
_NEARLY_FULL_BYTES = 1 << 20
_REMOVAL_TRIES = 40
_NAMED = 12


@dataclass(frozen=True)
class Store:
    """The folder that holds everything Slipway makes."""

    root: Path

    @property
    def datasets(self) -> Path:
        """Prepared datasets, NAME-HASH each."""
        return self.root / "datasets"

    @property
    def runs(self) -> Path:
        """Runs, NAME-HASH each."""
        return self.root / "runs"

    @property
    def exports(self) -> Path:
        """Exports of weights that come from elsewhere, NAME-HASH each; a run's own lie in the run."""
        return self.root / "exports"

    def relative(self, path: Path) -> str:
        """A path as it is printed: relative to the store where it lies in it."""
        try:
            return path.resolve().relative_to(self.root.resolve()).as_posix()
        except ValueError:
            return str(path)

    def dataset(self, name: str, identity: str) -> Path:
        """The folder of a dataset: any committed one of this identity, whatever job it was made for."""
        for found in sorted(self.datasets.glob(f"*-{identity}")):
            if is_committed(found):
                return found
        return self.datasets / f"{name}-{identity}"

    def run(self, name: str, identity: str) -> Path:
        """The folder of a run."""
        return self.runs / f"{name}-{identity}"

    def find_run(self, asked: str) -> Path:
        """A run's folder from a path, a path in the store, or a name (whole, or a unique beginning).

        Raises:
            StoreError: there is none, or more than one; lists what there is.
        """
        return self._find(asked, "run", self.runs, "job.yaml", "`slipway runs` lists them")

    def find_dataset(self, asked: str) -> Path:
        """A dataset's folder, likewise.

        Raises:
            StoreError: there is none, or more than one; lists what there is.
        """
        return self._find(asked, "dataset", self.datasets, MARKER, "`slipway data list` lists them")

    def _find(self, asked: str, what: str, parent: Path, sign: str, fix: str) -> Path:
        for candidate in (Path(asked), self.root / asked, parent / asked):
            if (candidate / sign).is_file():
                return candidate.resolve()
        names = sorted(p.name for p in parent.glob("*") if (p / sign).is_file())
        matches = [n for n in names if n.startswith(asked)]
        if len(matches) == 1:
            return (parent / matches[0]).resolve()
        found = (
            f"{len(matches)} begin so: {_first(matches)}" if matches else f"the store has: {_first(names) or 'none'}"
        )
        raise StoreError(f"there is no {what} {asked!r} in {self.root}; {found}", fix=fix)


def _first(names: list[str]) -> str:
    """Some of what may be thousands."""
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def is_committed(folder: Path) -> bool:
    """Whether a reader may see this folder."""
    return (folder / MARKER).is_file()


def read_manifest(folder: Path, error: type[SlipwayError] = StoreError) -> dict[str, Any]:
    """The manifest of a committed folder.

    Raises:
        error: the folder is not committed, or the manifest is not readable.
    """
    if not is_committed(folder):
        raise error(f"{folder} is not complete: it has no {MARKER} marker", fix="run the command that makes it again")
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise error(f"{folder / MANIFEST} is not readable: {cause}", fix=f"delete {folder} and make it again") from None
    if not isinstance(manifest, dict) or not _are_rows(manifest.get("files")):
        raise error(f"{folder / MANIFEST} is not a manifest", fix=f"delete {folder} and make it again")
    return manifest


def _are_rows(files: Any) -> bool:
    return isinstance(files, list) and all(isinstance(row, dict) and row.keys() >= _ROW_KEYS for row in files)


def verify_folder(
    folder: Path, error: type[SlipwayError] = StoreError, *, deep: bool | Collection[str] = True
) -> dict[str, Any]:
    """Check the size of every file that the manifest names, and the SHA-256 of all or of some; returns the manifest.

    Raises:
        error: names the first file that is absent or differs.
    """
    manifest = read_manifest(folder, error)
    for entry in manifest["files"]:
        path = folder / entry["path"]
        is_hashed = deep if isinstance(deep, bool) else entry["path"] in deep
        size = path.stat().st_size if path.is_file() else None
        if size != entry["bytes"]:
            found = "is absent" if size is None else f"has {size} bytes"
            raise error(
                f"{path} {found}, the manifest says {entry['bytes']} bytes",
                fix=f"delete {folder} and make it again",
            )
        if is_hashed and (digest := sha256_file(path)) != entry["sha256"]:
            raise error(
                f"{path} was altered: its SHA-256 is {digest[:16]}..., the manifest says {entry['sha256'][:16]}...",
                fix=f"delete {folder} and make it again",
            )
    return manifest


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in bounded memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def file_entries(folder: Path, paths: list[Path]) -> list[dict[str, Any]]:
    """Manifest rows of files, each flushed to disk first."""
    entries = []
    for path in sorted(paths):
        fsync(path)
        entries.append(
            {
                "path": path.relative_to(folder).as_posix(),
                "bytes": path.stat().st_size,
                "sha256": sha256_file(path),
            }
        )
    return entries


@contextlib.contextmanager
def storage_errors(folder: Path, *, doing: str) -> Iterator[None]:
    """Turn whatever a failed write raises into a StoreError that says what to do.

    Raises:
        StoreError: for every OSError, and for any other error while the disk is full.
    """
    try:
        yield
    except SlipwayError:
        raise
    except Exception as error:
        cause = as_disk_error(error, folder)
        if cause is None:
            raise
        raise storage_error(cause, doing=doing) from error


def as_disk_error(error: Exception, folder: Path) -> OSError | None:
    """The OSError behind a failed write: torch and safetensors report a full disk as errors of their own."""
    if isinstance(error, OSError):
        return error
    place = next(p for p in (folder, *folder.parents) if p.exists())
    if shutil.disk_usage(place).free < _NEARLY_FULL_BYTES or "os error 28" in str(error):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
    return None


def new_tmp(final: Path) -> Path:
    """Name a folder to write into before it is published as `final`; made by the caller."""
    return final.with_name(f"{final.name}{_TMP}{uuid.uuid4().hex[:12]}")


@contextlib.contextmanager
def writing(final: Path) -> Iterator[Path]:
    """Write a folder aside; whoever leaves without `commit` leaves nothing behind."""
    final.parent.mkdir(parents=True, exist_ok=True)
    tmp = new_tmp(final)
    tmp.mkdir()
    try:
        yield tmp
    finally:
        # Again and again for a while: somebody who works for us may still be adding files. Once it is gone, nobody can.
        for _ in range(_REMOVAL_TRIES):
            shutil.rmtree(tmp, ignore_errors=True)
            if not tmp.exists():
                break
            time.sleep(0.05)


def commit(tmp: Path, final: Path, manifest: dict[str, Any], entries: list[dict[str, Any]] | None = None) -> None:
    """Publish `tmp` as `final`. The caller holds the lock of what it writes.

    `entries` are the manifest's rows where they were made already (by several ranks); else all files are hashed here.
    """
    files = [p for p in tmp.rglob("*") if p.is_file()]
    rows = file_entries(tmp, files) if entries is None else sorted(entries, key=lambda e: str(e["path"]))
    write_json(tmp / MANIFEST, {**manifest, "files": rows})
    for folder in {p.parent for p in files} | {tmp}:
        fsync(folder)
    if final.exists():  # without its marker (or being replaced): readers do not see it, so it may go
        (final / MARKER).unlink(missing_ok=True)
        shutil.rmtree(final)
    tmp.rename(final)
    fsync(final.parent)
    marker = final / MARKER
    marker.touch()
    fsync(marker)
    fsync(final)


def sweep(parent: Path, name: str | None = None) -> None:
    """Remove what an interrupted writer left behind: the temporary folders of `name`, or of everything in `parent`."""
    for left in parent.glob(f"{name or '*'}{_TMP}*"):
        shutil.rmtree(left, ignore_errors=True)


def delete_committed(folder: Path) -> None:
    """Delete a published folder, marker first: a reader never sees half of it."""
    (folder / MARKER).unlink(missing_ok=True)
    shutil.rmtree(folder)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all, flushed to disk."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all, flushed to disk."""
    aside = path.with_name(f".{path.name}{_TMP}{uuid.uuid4().hex[:12]}")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def fsync(path: Path) -> None:
    """Flush a file or a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def lock(path: Path, *, holds: str, wait_s: float = 0.0, shared: bool = False) -> Iterator[None]:
    """Hold a lock that dies with its owner; the file stays, the kernel's lock on it does not.

    Raises:
        StoreError: another process holds it; says which, and what it writes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_s
    with path.open("a+", encoding="utf-8") as file:
        while True:
            try:
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    file.seek(0)
                    owner = file.read().strip() or "another process"
                    raise StoreError(
                        f"{holds} is being written by {owner}", fix="wait until it has ended, or stop it"
                    ) from None
                time.sleep(0.1)
        if not shared:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {os.uname().nodename}")
            file.flush()
        yield
