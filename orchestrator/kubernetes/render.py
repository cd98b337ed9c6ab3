"""The story: a job and its plan, and where it is to run -> the files that `kubectl apply` takes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from orchestrator.errors import JobError
from orchestrator.job import JobSpec
from orchestrator.job_file import env_names, job_to_yaml, to_yaml
from orchestrator.job_secrets import require_no_secret
from orchestrator.kubernetes.clusters import ray_cluster, ray_job, ray_service
from orchestrator.kubernetes.surroundings import job_map, network_policy, secrets_example, storage
from orchestrator.kubernetes.values import Target
from orchestrator.plan import Plan

_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SIZE = re.compile(r"[1-9][0-9]*(Mi|Gi|Ti|Pi|M|G|T|P)")
_UNKNOWN = ("$", "~")
"""What such a path begins with is known in the pod alone."""


@dataclass(frozen=True)
class Render:
    """What is to be written, and what its reader should know."""

    files: dict[str, str]
    """Name -> content."""
    warnings: list[str]


def render(job: JobSpec, plan: Plan, target: Target) -> Render:
    """All manifests of a job. The same job, plan and target give the same bytes.

    Raises:
        JobError: the job holds a secret itself, or `target` has a name or size that Kubernetes does not take.
    """
    _require_valid(target)
    require_no_secret(job)
    variables = env_names(job_to_yaml(job))
    files = {name: to_yaml(*found) for name, found in manifests(job, plan, target, variables).items()}
    return Render(files, _warnings(job, target, variables))


def manifests(
    job: JobSpec, plan: Plan, target: Target, variables: Sequence[str] = ()
) -> dict[str, list[dict[str, Any]]]:
    """File name -> its documents. `variables` are what the job reads of the environment."""
    return {
        "storage.yaml": [storage(target)],
        "configmap.yaml": [job_map(job, target)],
        "networkpolicy.yaml": [network_policy(job, target)],
        "rayjob.yaml": [ray_job(job, plan, target)],
        "raycluster.yaml": [ray_cluster(job, plan, target)],
        "secret.yaml.example": secrets_example(target, variables),
        "rayservice.yaml": [ray_service(job, plan, target)],
    }


def _require_valid(target: Target) -> None:
    for option, name in (("--namespace", target.namespace), ("--storage-class", target.storage_class)):
        if name is not None and not _NAMESPACE.fullmatch(name):
            raise JobError(f"{option} {name!r} is no name in Kubernetes", fix="use a to z, 0 to 9 and dashes")
    if not _SIZE.fullmatch(target.storage_size):
        raise JobError(f"--storage-size {target.storage_size!r} is no size in Kubernetes", fix="such as 100Gi or 2Ti")
    if not PurePosixPath(target.store).is_absolute() or target.store == "/":
        raise JobError(f"--store {target.store} is no folder to mount a volume at", fix="such as /store")
    if not target.image or re.search(r"\s", target.image):
        raise JobError(f"--image {target.image!r} is no image", fix="such as registry.example.org/slipway:0.1.0")


def _warnings(job: JobSpec, target: Target, variables: list[str]) -> list[str]:
    said = []
    paths = {f"data.sources.{i}.path": source.path for i, source in enumerate(job.data.sources)}
    paths |= {f"data.deduplicate.against.{i}.path": e.path for i, e in enumerate(job.data.deduplicate.against)}
    if job.data.tokenizer.path:
        paths["data.tokenizer.path"] = job.data.tokenizer.path
    for key, path in paths.items():
        if where := _in_the_image(path, target.store):
            said.append(
                f"{key} is {path}: pods look for it {where}; "
                f"what is not there belongs below {target.store}, or on S3 or GCS"
            )
    if variables:
        said.append(f"the job reads {', '.join(variables)}: write what they are into the Secret slipway-environment")
    if job.training.workers.gpus and target.workers_per_pod == 1 and job.training.workers.max > 1:
        said.append(
            "every worker has a pod of its own, and GPUs of different pods do not use NVLink; "
            "--workers-per-pod takes the workers of one machine together"
        )
    return said


def _in_the_image(path: str, store: str) -> str | None:
    """Where in its image a pod looks for a path; None: it need not be there."""
    if "://" in path or path.startswith(_UNKNOWN) or PurePosixPath(path).is_relative_to(store):
        return None
    return "in the image" if path.startswith("/") else "in the image, beside its jobs/"
