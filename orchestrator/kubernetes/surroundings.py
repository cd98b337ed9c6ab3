"""What a job's pods need around them: storage, the job's file, a closed network, the form of the secrets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.job import JobSpec
from orchestrator.job_file import job_to_yaml
from orchestrator.kubernetes.pods import DASHBOARD_PORT, METRICS_PORT
from orchestrator.kubernetes.values import (
    ENVIRONMENT_SECRET,
    STORE_CLAIM,
    TOKEN_SECRET,
    Target,
    an_object,
    dns_name,
    labels,
)

PLACEHOLDER = "REPLACE-ME"
_OPERATORS = (
    {"app.kubernetes.io/name": "kuberay-operator"},  # as Helm installs it
    {"app.kubernetes.io/component": "kuberay-operator"},  # as kustomize does
)


def storage(target: Target) -> dict[str, Any]:
    """The store: one claim that all pods of the namespace mount."""
    spec: dict[str, Any] = {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": target.storage_size}},
    }
    if target.storage_class is not None:
        spec["storageClassName"] = target.storage_class
    part_of = {"app.kubernetes.io/part-of": "slipway"}
    return an_object("v1", "PersistentVolumeClaim", STORE_CLAIM, target, labels=part_of, spec=spec)


def job_map_name(name: str) -> str:
    """Of the ConfigMap that has a job's file."""
    return f"{name}-job"


def job_map(job: JobSpec, target: Target) -> dict[str, Any]:
    """The job's file, whole: what it extends and `--set` are in it, `${env:NAME}` stays."""
    name = dns_name(job.name)
    data = {"job.yaml": job_to_yaml(job)}
    return an_object("v1", "ConfigMap", job_map_name(name), target, labels=labels(name), data=data)


def network_policy(job: JobSpec, target: Target) -> dict[str, Any]:
    """Between the job's pods everything; from outside the service's port, KubeRay's operator, and Prometheus."""
    name = dns_name(job.name)
    anywhere: dict[str, Any] = {"namespaceSelector": {}}
    operators = [{**anywhere, "podSelector": {"matchLabels": dict(found)}} for found in _OPERATORS]
    prometheus = [{**anywhere, "podSelector": {"matchLabels": {"app.kubernetes.io/name": "prometheus"}}}]
    spec = {
        "podSelector": {"matchLabels": labels(name)},
        "policyTypes": ["Ingress"],
        "ingress": [
            {"from": [{"podSelector": {"matchLabels": labels(name)}}]},
            {"ports": [_tcp(job.serve.port)]},
            {"from": operators, "ports": [_tcp(DASHBOARD_PORT), _tcp(job.serve.port)]},
            {"from": prometheus, "ports": [_tcp(METRICS_PORT)]},
        ],
    }
    return an_object("networking.k8s.io/v1", "NetworkPolicy", name, target, labels=labels(name), spec=spec)


def secrets_example(target: Target, variables: Sequence[str]) -> list[dict[str, Any]]:
    """The two Secrets that the pods refer to, with no value in them. `variables` are what the job reads."""
    token = {"auth_token": PLACEHOLDER}
    keys = dict.fromkeys(sorted({*variables, "SLIPWAY_ACCOUNTS", "WANDB_API_KEY"}), PLACEHOLDER)
    return [
        an_object("v1", "Secret", TOKEN_SECRET, target, type="Opaque", stringData=token),
        an_object("v1", "Secret", ENVIRONMENT_SECRET, target, type="Opaque", stringData=keys),
    ]


def _tcp(port: int) -> dict[str, Any]:
    return {"protocol": "TCP", "port": port}
