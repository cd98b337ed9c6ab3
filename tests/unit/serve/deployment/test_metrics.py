"""What Prometheus reads, parsed by its own client."""

from __future__ import annotations

from dataclasses import replace

from load_fixtures import LOAD
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.serve.deployment.metrics import Metrics
from orchestrator.serve.deployment.observe import Request
from orchestrator.serve.deployment.table import Entry, Facts

FACTS = Facts(kind="decoder", fingerprint="fp_1", created=1)


def entry(version: str, share: float) -> Entry:
    return Entry(model="m", version=version, export="/e", share=share, app=f"m-{version}", facts=FACTS)


def samples(text: bytes) -> dict[tuple[str, str, str], float]:
    return {
        (sample.name, sample.labels["version"], sample.labels.get("outcome", sample.labels.get("le", ""))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_requests_are_counted_by_version_and_outcome() -> None:
    metrics, one = Metrics(), entry("v1", 1.0)
    metrics.ended(one, Request(began_at=10.0, first_at=10.04, ended_at=10.24, tokens=11))
    metrics.ended(one, Request(began_at=10.0, ended_at=10.2, failed=True))
    found = samples(metrics.exposition([(one, 3)], {}))
    assert found["slipway_requests_total", "v1", "ok"] == 1
    assert found["slipway_requests_total", "v1", "error"] == 1
    assert found["slipway_streamed_tokens_total", "v1", ""] == 11
    assert found["slipway_first_token_seconds_bucket", "v1", "0.025"] == 0
    assert found["slipway_first_token_seconds_bucket", "v1", "0.05"] == 1
    assert found["slipway_token_seconds_bucket", "v1", "0.025"] == 1
    assert found["slipway_requests_under_way", "v1", ""] == 3
    assert found["slipway_replicas", "v1", ""] == 0


def test_loads_are_summed_over_replicas_and_a_version_that_is_gone_is_told_no_more() -> None:
    metrics, old, new = Metrics(), entry("v1", 0.9), entry("v2", 0.1)
    loads = {"m-v1": [LOAD, replace(LOAD, oldest_wait_s=2.0)], "m-v2": [LOAD]}
    found = samples(metrics.exposition([(old, 0), (new, 0)], loads))
    assert found["slipway_engine_running", "v1", ""] == 8
    assert found["slipway_engine_cache_limit_tokens", "v2", ""] == 4000
    assert found["slipway_engine_queue_seconds", "v1", ""] == 2.0
    assert found["slipway_version_share", "v2", ""] == 0.1
    after = samples(metrics.exposition([(new, 0)], loads))
    assert ("slipway_engine_running", "v1", "") not in after
