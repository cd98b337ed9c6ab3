"""How replicas are asked for: as many requests may wait for them as the settings promise."""

from __future__ import annotations

import pytest

from orchestrator.errors import ServeError
from orchestrator.job import Replicas, Serve
from orchestrator.serve.deployment.applications import most_requests, version_application
from orchestrator.serve.deployment.table import Entry, Facts

ENTRY = Entry(
    model="m", version="v1", export="/e", share=1.0, app="m-v1", facts=Facts(kind="encoder", fingerprint="f", created=1)
)


@pytest.mark.parametrize("replicas", [Replicas(), Replicas(min=2, max=2), Replicas(min=0, max=4)])
def test_all_that_may_be_under_way_may_wait_for_a_replica(replicas: Replicas) -> None:
    settings = Serve(max_ongoing_requests=3, replicas=replicas)
    application = version_application(ENTRY, settings, cpus=None)
    config = application._bound_deployment._deployment_config
    assert config.max_queued_requests == most_requests(settings) == 12 * replicas.max
    assert config.max_ongoing_requests == 6


def test_vllm_serves_decoders_alone() -> None:
    with pytest.raises(ServeError, match=r"serve\.engine vllm serves decoders; m is none"):
        version_application(ENTRY, Serve(engine="vllm"), cpus=None)
