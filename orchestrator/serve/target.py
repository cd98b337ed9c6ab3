"""What `slipway serve RUN` means: the export, how its job wants it served, and its name. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from orchestrator.errors import StoreError
from orchestrator.export.stage import newest_export
from orchestrator.job import Serve
from orchestrator.job_file import load_job
from orchestrator.store import Store, is_committed, read_manifest


def find_export(store: Store, asked: str) -> tuple[Path, Serve, str]:
    """The export folder, the settings and the model's name for a run (its newest export) or an export's own folder.

    Raises:
        StoreError: there is neither, or the run has no export yet.
    """
    for candidate in (Path(asked), store.root / asked):
        if (candidate / "probe.safetensors").is_file() and is_committed(candidate):
            run = candidate.resolve().parent.parent
            if (run / "job.yaml").is_file():
                job = load_job(run / "job.yaml")
                return candidate.resolve(), job.serve, job.name
            return candidate.resolve(), Serve(), str(read_manifest(candidate).get("name") or candidate.name)
    try:
        run = store.find_run(asked)
    except StoreError as error:
        raise StoreError(
            error.message, fix="give a run, or the folder of an export; `slipway runs` lists them"
        ) from None
    job = load_job(run / "job.yaml")
    return newest_export(run), job.serve, job.name
