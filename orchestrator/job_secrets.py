"""Secrets have no place in a job: it travels over the network, and shows wherever the job does."""

from __future__ import annotations

from typing import Any

from orchestrator.errors import JobError
from orchestrator.job import JobSpec
from orchestrator.job_file import env_names
from orchestrator.track.tracker import redact


def require_no_secret(job: JobSpec) -> None:
    """Refuse a job that holds one: it shows in Ray's dashboard, and in a ConfigMap to all who may list the namespace.

    Raises:
        JobError: names the keys whose values look like one.
    """
    whole = job.model_dump(mode="json")
    if found := sorted(_differing(whole, redact(whole), "")):
        raise JobError(
            f"the job holds what looks like a secret, in {', '.join(found)}: whoever sees the cluster would see it",
            fix="leave it out: paths take ${env:NAME}, accounts SLIPWAY_ACCOUNTS, from the Secret slipway-environment",
        )


def _differing(value: Any, redacted: Any, at: str) -> list[str]:
    if isinstance(value, dict):
        return [found for key in value for found in _differing(value[key], redacted[key], f"{at}.{key}".strip("."))]
    if isinstance(value, list):
        return [found for i, item in enumerate(value) for found in _differing(item, redacted[i], f"{at}.{i}")]
    # A reference is what a secret should be.
    by_reference = isinstance(value, str) and bool(env_names(value))
    return [at] if value != redacted and not by_reference else []
