"""Copies of a run's checkpoints in an object store, for a machine that comes back with an empty disk.

    s3://BUCKET/PREFIX/RUN/checkpoints/step-NNNNNNNN/     as on disk, its marker last
    s3://BUCKET/PREFIX/RUN/{metrics,events}.jsonl, samples/     what was known when the newest was copied

A copy is taken back only where it is ahead of what the disk has.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from orchestrator import object_store
from orchestrator.checkpoint.layout import checkpoints_folder, step_folder, step_of, to_delete
from orchestrator.checkpoint.reader import committed_steps
from orchestrator.checkpoint.writer import Retention
from orchestrator.errors import StorageError, StoreError
from orchestrator.store import MANIFEST, commit, file_entries, writing

_RECORDS = ("metrics.jsonl", "events.jsonl")
_SAMPLES = "samples"


def copy_checkpoint(run: Path, folder: Path, uri: str, *, retention: Retention, best_step: int | None) -> None:
    """Copy a committed checkpoint and the run's records to `uri`/RUN, and delete the copies that are not kept.

    Raises:
        StorageError: the store does not answer, or refuses; what it had before is still there.
    """
    to = f"{uri.rstrip('/')}/{run.name}"
    try:
        for path in [*(run / name for name in _RECORDS), *sorted((run / _SAMPLES).glob("*"))]:
            if path.is_file():
                object_store.upload_file(path, f"{to}/{path.relative_to(run).as_posix()}")
        object_store.upload_folder(folder, f"{to}/checkpoints/{folder.name}")
        steps = _steps(to)
        keep_last, keep_every = retention.keep_last, retention.keep_every
        for step in to_delete(steps, keep_last=keep_last, keep_every=keep_every, best_step=best_step):
            object_store.delete_folder(step_uri(to, step))
    except object_store.ERRORS as error:
        raise _refused(to, error) from None


def bring_back(run: Path, uri: str, *, say: Callable[[str], None]) -> int | None:
    """Take back the newest copy that verifies, where it is ahead of the disk: its step. None: the disk has more.

    Raises:
        StorageError: the store does not answer.
    """
    of_run = f"{uri.rstrip('/')}/{run.name}"
    own = max((step_of(path.name) or 0 for path in committed_steps(run)), default=0)
    try:
        for step in reversed(_steps(of_run)):
            if step <= own:
                return None
            try:
                _take(run, of_run, step)
            except StoreError as error:
                say(f"passing over {step_uri(of_run, step)}: {error.message}")
                continue
            say(f"took back {step_uri(of_run, step)}")
            return step
    except object_store.ERRORS as error:
        raise _refused(of_run, error) from None
    return None


def step_uri(of_run: str, step: int) -> str:
    """Where a copy of a checkpoint is."""
    return f"{of_run}/checkpoints/{step_folder(Path(), step).name}"


def _take(run: Path, of_run: str, step: int) -> None:
    """The records first: a checkpoint counts on the lines of its steps."""
    final = step_folder(checkpoints_folder(run), step)
    with writing(final) as tmp:
        object_store.download_folder(step_uri(of_run, step), tmp)
        manifest = _verified(tmp)
        with writing(run / "records") as records:
            object_store.download_folder(of_run, records, without="checkpoints")
            for path in sorted(p for p in records.rglob("*") if p.is_file()):
                target = run / path.relative_to(records)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
            shutil.rmtree(records)
        commit(tmp, final, {name: value for name, value in manifest.items() if name != "files"}, manifest["files"])


def _verified(folder: Path) -> dict[str, list[dict[str, object]]]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        (folder / MANIFEST).unlink()
        wanted = sorted(manifest["files"], key=lambda row: str(row["path"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"its manifest is not readable: {error}") from None
    found = file_entries(folder, [path for path in folder.rglob("*") if path.is_file()])
    if differ := [row["path"] for row in wanted if row not in found]:
        raise StoreError(f"{differ[0]} is not what its manifest says")
    return dict(manifest)


def _steps(of_run: str) -> list[int]:
    names = object_store.committed_folders(f"{of_run}/checkpoints")
    return sorted(step for name in names if (step := step_of(name)) is not None)


def _refused(uri: str, error: Exception) -> StorageError:
    return StorageError(
        f"{uri} does not take or give copies of checkpoints: {str(error).splitlines()[0]}",
        fix="check train.checkpoint.copy_to, bucket, region and credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, "
        "AWS_ENDPOINT_URL)",
    )
