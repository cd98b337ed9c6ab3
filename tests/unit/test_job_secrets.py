from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestrator.errors import JobError
from orchestrator.job import JobSpec
from orchestrator.job_secrets import require_no_secret


def test_a_secret_is_refused_and_its_key_named(tiny_job: Callable[..., JobSpec]) -> None:
    job = tiny_job("data.sources=[{path: 's3://name:planted-sentinel@host/bucket'}]")
    with pytest.raises(JobError, match=r"what looks like a secret, in data\.sources\.0\.path") as caught:
        require_no_secret(job)
    assert "planted-sentinel" not in str(caught.value)


def test_a_reference_is_not(tiny_job: Callable[..., JobSpec]) -> None:
    require_no_secret(tiny_job("serve.accounts='postgresql://${env:WHO}:${env:PASSWORD:-}@host/slipway'"))
