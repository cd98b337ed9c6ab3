"""Where served weights come from: export, checkpoint, run, job, code, dataset, its sources, and what it all began with.

Of what stands in a store's folders; no torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from orchestrator.checkpoint.layout import step_folder
from orchestrator.errors import StoreError
from orchestrator.export.manifest import is_custom, read_custom_manifest, read_export_manifest
from orchestrator.export.stage import export_at, named_run, newest_export
from orchestrator.runfolder import commit_of, dataset_of, origin_of
from orchestrator.store import Store, is_committed


def lineage_of(store: Store, asked: str) -> dict[str, Any]:
    """Back from an export (or a run, whose newest export it is) to its raw sources.

    Returns:
        `{"export", "checkpoint", "run", "job", "commit", "dataset", "sources": [{"path", "bytes", "sha256"}],
        "parents": [the same of what the training began with]}`; paths are relative to the store where they lie in it,
        and what there is none of is null.

    Raises:
        StoreError: there is no such export, or what it says of itself cannot be read.
    """
    export = export_at(store, asked)
    return _of_export(store, newest_export(named_run(store, asked)) if export is None else export)


def _of_export(store: Store, export: Path) -> dict[str, Any]:
    run = export.parent.parent
    manifest = read_custom_manifest(export) if is_custom(export) else read_export_manifest(export)
    if (run / "run.json").is_file():
        return _of_run(store, run, export=export, step=manifest.step)
    source = getattr(manifest, "source", None)
    files = [entry.model_dump() for entry in source.files] if source else []
    return _row(export=store.relative(export), sources=files)


def _of_run(store: Store, run: Path, *, export: Path | None, step: int) -> dict[str, Any]:
    checkpoint = step_folder(run / "checkpoints", step)
    dataset = dataset_of(run)
    began = origin_of(run)
    return _row(
        export=store.relative(export) if export else None,
        checkpoint=store.relative(checkpoint) if is_committed(checkpoint) else None,
        run=store.relative(run),
        job=store.relative(run / "job.yaml"),
        commit=commit_of(run),
        dataset=store.relative(dataset),
        sources=_sources(dataset),
        parents=[_of_origin(store, *began)] if began else [],
    )


def _of_origin(store: Store, folder: Path, identity: str) -> dict[str, Any]:
    """Of the weights that a run began with: of a checkpoint, an export, an import, or a folder elsewhere."""
    if (folder.parent.parent / "run.json").is_file() and folder.parent.name == "checkpoints":
        return _of_run(store, folder.parent.parent, export=None, step=int(folder.name.rpartition("-")[2]))
    if export_at(store, str(folder)) is not None:
        return _of_export(store, folder)
    return _row(weights=str(folder), identity=identity)


def _row(**known: Any) -> dict[str, Any]:
    empty = dict.fromkeys(("export", "checkpoint", "run", "job", "commit", "dataset"))
    return {**empty, "sources": [], "parents": [], **known}


def _sources(dataset: Path) -> list[dict[str, Any]]:
    path = dataset / "sources.json"
    try:
        found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path} does not say what the dataset was made of: {error}", fix="prepare the job again: it is made anew"
        ) from None
    return found
