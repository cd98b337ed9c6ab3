"""What `slipway serve RUN` means: the export, how its job wants it served, and its name. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from orchestrator.export.manifest import is_custom, read_custom_manifest, read_export_manifest, require_decoder
from orchestrator.export.stage import export_at, named_run, newest_export
from orchestrator.job import Serve
from orchestrator.job_file import load_job
from orchestrator.store import Store


def find_export(store: Store, asked: str) -> tuple[Path, Serve, str]:
    """The export folder, the settings and the model's name for a run (its newest export) or an export's own folder.

    Raises:
        StoreError: there is neither, or the run has no export yet.
    """
    export, run = export_at(store, asked), None
    if export is None:
        run = named_run(store, asked)
        export = newest_export(run)
    elif (export.parent.parent / "job.yaml").is_file():
        run = export.parent.parent
    name = _servable(export)
    if run is None:
        return export, Serve(), name
    job = load_job(run / "job.yaml")
    return export, job.serve, job.name


def _servable(export: Path) -> str:
    """The name of what can be served: a decoder, or a network of the user's own."""
    if is_custom(export):
        return read_custom_manifest(export).name
    manifest = read_export_manifest(export)
    require_decoder(export, manifest)
    return manifest.name
