"""What `slipway serve RUN` means: the export, how its job wants it served, and its name. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from orchestrator.export.manifest import is_custom, read_custom_manifest, read_export_manifest
from orchestrator.export.stage import export_at, named_run, newest_export
from orchestrator.job import Serve
from orchestrator.job_file import load_job
from orchestrator.store import Store
from orchestrator.track.progress import say


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
    name = _name_of(export)
    if run is None:
        return export, Serve(), name
    job = load_job(run / "job.yaml")
    return export, job.serve, job.name


def followed_run(store: Store, asked: str) -> Path:
    """The run whose checkpoints are to be followed, with an export of its newest that is to be served.

    Raises:
        StoreError: there is no such run.
        ServeError: it could not be exported, and how that failed.
    """
    from orchestrator.serve.rollout.exporter import Exporter

    run = named_run(store, asked)
    with Exporter() as export:
        export(run)
    return run


def prove(export: Path, settings: Serve) -> None:
    """Prove an export in this process: Ray Serve would try replica after replica, and hide the reason in its logs.

    Raises:
        StoreError, ServeError: as `prove_export` and `prove_custom`.
    """
    # Not at the top: they import torch.
    import torch

    from orchestrator.export.custom import prove_custom
    from orchestrator.export.prove import prove_export

    if not settings.gpus:  # as its replicas: on more cores than are free threads wait for each other, for seconds
        torch.set_num_threads(settings.cpus)
    if is_custom(export):
        prove_custom(export, precision=settings.precision)
    else:
        prove_export(export, precision=settings.precision)


def _name_of(export: Path) -> str:
    """The model's name; says what of an encoder is served if that is not what it was trained for."""
    if is_custom(export):
        return read_custom_manifest(export).name
    manifest = read_export_manifest(export)
    if manifest.head.kind not in ("lm", "classification", "embedding"):
        say(
            f"{manifest.name} has the head {manifest.head.kind}, which is not served: "
            "/v1/embeddings gives the mean of the tokens' vectors below it"
        )
    return manifest.name
