"""Where a job is to run, and the names of what it shares with others there."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

STORE_CLAIM = "slipway-store"
TOKEN_SECRET = "slipway-ray-token"
ENVIRONMENT_SECRET = "slipway-environment"
"""Shared by all jobs of a namespace: one store, one token of Ray, one set of keys."""

JOB_FOLDER = "/etc/slipway"

_NAME_LENGTH = 40
"""KubeRay allows a RayJob or RayService 47 and adds to it; what we add stays below that too."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a job does not say about the Kubernetes that it is to run on."""

    image: str
    ray_version: str
    """That of the image: KubeRay's probes and token mode depend on it."""
    store: str = "/store"
    """Where the store is mounted in the pods."""
    namespace: str | None = None
    """None: the one that kubectl is set to."""
    storage_class: str | None = None
    """None: the default of the Kubernetes; it must allow ReadWriteMany."""
    storage_size: str = "100Gi"
    workers_per_pod: int = 1
    run: str | None = None
    """The run that is served; None: the only one in the store that has the job's name."""


def dns_name(name: str) -> str:
    """A job's name as Kubernetes takes it: at most 40 of a to z, 0 to 9 and dashes, a letter first (RFC 1035).

    Two names that differ never become one: what cannot stay as it is gets a piece of its hash.
    """
    cleaned = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if cleaned == name and name[0].isalpha() and len(name) <= _NAME_LENGTH:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"job-{cleaned[: _NAME_LENGTH - 13].rstrip('-')}-{digest}"


def labels(name: str) -> dict[str, str]:
    """What all objects of a job carry, and its network policy selects by."""
    return {"app.kubernetes.io/part-of": "slipway", "app.kubernetes.io/instance": name}


def an_object(api: str, kind: str, name: str, target: Target, **parts: Any) -> dict[str, Any]:
    """A manifest; `labels` and `annotations` of `parts` go into its metadata, the rest beside it."""
    metadata: dict[str, Any] = {"name": name}
    if target.namespace is not None:
        metadata["namespace"] = target.namespace
    for key in ("labels", "annotations"):
        if (given := parts.pop(key, None)) is not None:
            metadata[key] = given
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **parts}


def environment_of(variables: Mapping[str, str]) -> list[dict[str, str]]:
    """Environment variables as a container has them."""
    return [{"name": name, "value": value} for name, value in variables.items()]
