"""What is read of one folder of a store: its row, and what it was made of. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from orchestrator.catalogue.tables import Facts, Row
from orchestrator.compare import read_tags
from orchestrator.data.sources.file import is_remote
from orchestrator.errors import SlipwayError
from orchestrator.export.manifest import is_custom, read_custom_manifest, read_export_manifest
from orchestrator.runfolder import commit_of, dataset_of, origin_of
from orchestrator.status import describe_run
from orchestrator.store import Store, is_committed, read_manifest
from orchestrator.track.events import iso_time, read_events

SETTLED_AFTER_S = 120.0
"""What has changed since then is read again: a marker comes a moment after the rename that its parent shows, and clocks
of file servers are not ours."""
_LOOKED_AT = ("", "metrics.jsonl", "events.jsonl", "checkpoints", "export")
"""Of a run. Whatever else is in it is written by a rename, which shows in the folder itself."""

Edge = tuple[str, str, str]
"""(what was made, of what, how)."""
_Rows = dict[str, list[dict[str, Any]]]


def folders(store: Store) -> dict[str, str]:
    """Path in the store -> the state of the folder, of all that the catalogue tells of. Reads no file."""
    parents = ((store.runs, "job.yaml"), (store.datasets, "COMMITTED"), (store.exports, "COMMITTED"))
    return {
        f"{parent.name}/{path.name}": _state(path)
        for parent, sign in parents
        for path in sorted(parent.glob("*"))
        if not path.name.startswith(".") and (path / sign).is_file()
    }


def _state(folder: Path, now: float | None = None) -> str:
    stats = [_stat(folder / name) for name in _LOOKED_AT]
    newest_s = max(at_ns for at_ns, _ in stats) / 1e9
    settled = newest_s < (time.time() if now is None else now) - SETTLED_AFTER_S
    return ",".join(f"{at_ns}:{size}" for at_ns, size in stats) if settled else ""


def _stat(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


def read_facts(store: Store, path: str, seen: str) -> Facts | None:
    """Read one folder; `seen` is its state from before the reading. None where it is gone by now.

    What cannot be read says so in its row.
    """
    room, folder = path.partition("/")[0], store.root / path
    try:
        rows = {"runs": _run, "datasets": _dataset, "exports": _import}[room](folder, store)
    except OSError as error:
        if not folder.is_dir():
            return None
        rows = {room: [{room[:-1]: path, "error": str(error), **_of_no_content(folder)}]}
    return Facts.of(path, seen, rows)


def _of_no_content(folder: Path) -> dict[str, Any]:
    """Of a run, what there is to say without reading a file; other tables have no such columns."""
    at = iso_time(_worked_at_s(folder))
    return {"name": folder.name, "state": "unreadable", "began_at": at, "worked_at": at}


def _run(folder: Path, store: Store) -> _Rows:
    path = f"runs/{folder.name}"
    events = list(read_events(folder))
    jobs = [_job(path, event) for event in events if event["event"] == "launched"]
    row = {**_of_no_content(folder), **describe_run(folder, store), **_provenance(folder, store), "run": path}
    row["began_at"] = events[0]["time"] if events else iso_time(_stat(folder / "job.yaml")[0] / 1e9)
    exports = [_export(found, path, store) for found in _exports(folder)]
    return {
        "runs": [row],
        "tags": [{"run": path, "tag": tag} for tag in _tags(folder)],
        "jobs": jobs,
        "exports": exports,
        "lineage": _edges([*_run_edges(folder, row, store), *(e for row in exports for e in _export_edges(row))]),
    }


def _worked_at_s(folder: Path) -> float:
    """When a run was last at work: its newest line, event or checkpoint; a tag is no work."""
    moments = [_stat(folder / name)[0] for name in _LOOKED_AT[1:]]
    return (max(moments) or _stat(folder / "job.yaml")[0]) / 1e9


def _provenance(folder: Path, store: Store) -> dict[str, Any]:
    try:
        return {"dataset": store.relative(dataset_of(folder)), "code": commit_of(folder)}
    except SlipwayError:
        return {"dataset": None, "code": None}


def _tags(folder: Path) -> list[str]:
    try:
        return read_tags(folder)
    except SlipwayError:  # `runs tag` says what is wrong with them
        return []


def _job(path: str, event: Row) -> dict[str, Any]:
    told = {name: event.get(name) for name in ("attempt", "workers", "host", "submission")}
    return {"run": path, "launched_at": event["time"], "submitter": event.get("by"), **told}


def _exports(folder: Path) -> list[Path]:
    return sorted(found for found in (folder / "export").glob("step-*") if is_committed(found))


def _export(folder: Path, run: str | None, store: Store) -> dict[str, Any]:
    path = f"{run}/export/{folder.name}" if run else store.relative(folder)
    row = {"export": path, "run": run, "made_at": iso_time(_stat(folder)[0] / 1e9)}
    try:
        manifest = read_custom_manifest(folder) if is_custom(folder) else read_export_manifest(folder)
    except SlipwayError as error:
        return {**row, "error": error.message}
    return {**row, "name": manifest.name, "family": getattr(manifest, "family", "custom"), "step": manifest.step}


def _run_edges(folder: Path, row: Row, store: Store) -> Iterable[Edge]:
    path = f"runs/{folder.name}"
    if row["dataset"]:
        yield path, row["dataset"], "trained on"
    try:
        origin = origin_of(folder)
    except SlipwayError:
        return
    if origin is not None:
        began = store.relative(origin[0])
        yield path, began, "began with"
        yield from _saved_by(began)


def _export_edges(row: Row) -> Iterable[Edge]:
    checkpoint = f"{row['run']}/checkpoints/{str(row['export']).rpartition('/')[2]}"
    yield row["export"], checkpoint, "made of"
    yield from _saved_by(checkpoint)


def _saved_by(path: str) -> Iterable[Edge]:
    """Of a checkpoint of this store, its run; of an export that a run began with, its own row has it."""
    run, within, _ = path.partition("/checkpoints/")
    if within and run.startswith("runs/"):
        yield path, run, "saved by"


def _dataset(folder: Path, store: Store) -> _Rows:
    path = f"datasets/{folder.name}"
    row: dict[str, Any] = {"dataset": path, "made_at": iso_time(_stat(folder)[0] / 1e9)}
    try:
        manifest = read_manifest(folder)
        splits = manifest["splits"]
        row["kind"] = str(manifest["kind"])
        row["tokens"] = sum(int(split["tokens"]) for split in splits.values())
        row["documents"] = sum(int(split["documents"]) for split in splits.values())
        places = [str(one["place"]) for one in manifest.get("components", [])]
    except (SlipwayError, KeyError, TypeError, ValueError, AttributeError) as error:
        return {"datasets": [{**row, "error": str(error)}]}
    parts = [place if is_remote(place) else store.relative((folder / place).resolve()) for place in places]
    return {"datasets": [row], "lineage": _edges((path, part, "mixes") for part in parts)}


def _import(folder: Path, store: Store) -> _Rows:
    return {"exports": [_export(folder, None, store)]}


def _edges(edges: Iterable[Edge]) -> list[dict[str, Any]]:
    return [{"child": child, "parent": parent, "how": how} for child, parent, how in dict.fromkeys(edges)]
