"""`slipway kubernetes render`: the manifests with which KubeRay runs and serves a job."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.cli_common import AsJson, JobFile, Sets, print_document

Out = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="The folder for the manifests; made if it is not there.")
]
Mounted = Annotated[
    str, typer.Option("--store", metavar="DIR", help="Where the store's volume is mounted in the pods.")
]
Image = Annotated[
    str | None, typer.Option(help="The image, as the Dockerfile makes it; slipway:VERSION, with ours, by default.")
]
Namespace = Annotated[str | None, typer.Option(help="Of all objects; kubectl's own by default.")]
StorageClass = Annotated[
    str | None, typer.Option(help="Of the store's volume, with ReadWriteMany; Kubernetes' default otherwise.")
]
StorageSize = Annotated[str, typer.Option(metavar="100Gi", help="Of the store's volume.")]
WorkersPerPod = Annotated[
    int, typer.Option(min=1, help="Workers that share a pod: those of a machine, so that its GPUs use NVLink.")
]
Served = Annotated[
    str | None,
    typer.Option("--run", help="Of rayservice.yaml: the run to serve; by default the only one with the job's name."),
]
Force = Annotated[
    bool, typer.Option("--force", help="Overwrite manifests there that differ; without it they are refused.")
]

kubernetes_app = typer.Typer(help="Manifests for Kubernetes, by way of KubeRay.", no_args_is_help=True)


@kubernetes_app.command("render")
def render(
    job: JobFile,
    out: Out,
    sets: Sets = [],
    store: Mounted = "/store",
    image: Image = None,
    namespace: Namespace = None,
    storage_class: StorageClass = None,
    storage_size: StorageSize = "100Gi",
    workers_per_pod: WorkersPerPod = 1,
    run: Served = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write KubeRay's manifests for a job: to run it, to submit it to, to serve it. Asks no cluster.

    Example:  slipway kubernetes render jobs/gpt-124m.yaml --out deploy --image registry.example.org/slipway:0.1.0
    """
    from orchestrator.cluster.view import declared_view
    from orchestrator.job_file import load_job
    from orchestrator.kubernetes import Target, write_files
    from orchestrator.kubernetes import render as render_files
    from orchestrator.plan import make_plan
    from orchestrator.status import given_vocabulary

    spec = load_job(job, sets)
    asked = spec.training.workers
    # A machine for each worker: the largest number of them is what the memory of each is planned for.
    view = declared_view(nodes=asked.max, cpus=asked.cpus, gpus=asked.gpus)
    plan = make_plan(spec, view, vocab_size=given_vocabulary(spec))
    target = Target(
        image=image if image is not None else f"slipway:{version('slipway')}",
        ray_version=version("ray"),
        store=store,
        namespace=namespace,
        storage_class=storage_class,
        storage_size=storage_size,
        workers_per_pod=workers_per_pod,
        run=run,
    )
    rendered = render_files(spec, plan, target)
    done = write_files(rendered.files, out, force=force)
    document = {"out": str(out), **done, "image": target.image, "warnings": rendered.warnings}
    if as_json:
        print_document(document, as_json)
    else:
        _say(document)


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.add_typer(kubernetes_app, name="kubernetes")


def _say(document: dict[str, Any]) -> None:
    for state in ("written", "unchanged"):
        for name in document[state]:
            sys.stdout.write(f"{state:>9}  {Path(document['out']) / name}\n")
    for warning in document["warnings"]:
        sys.stderr.write(f"warning: {warning}\n")
    sys.stderr.write("which to apply, and when: docs/kubernetes.md\n")
