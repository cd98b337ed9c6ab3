"""`/metrics`: what Prometheus reads of the gateway, by model and version. No Ray, no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from orchestrator.serve.deployment.observe import Request
from orchestrator.serve.deployment.table import Entry
from orchestrator.serve.engine.protocol import Load

CONTENT_TYPE = CONTENT_TYPE_LATEST
_OF = ("model", "version")
_FIRST_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_GAUGES = {
    "running": "Completions that the engines' next steps work on: the batch size",
    "waiting": "Completions that wait in the engines",
    "tokens_in_flight": "Tokens still to be read or made",
    "cache_tokens": "Tokens of room taken in the caches",
    "cache_limit_tokens": "Tokens of room that there are in the caches",
}
"""Of `Load`, summed over the replicas."""
_TOTALS = {
    "prompt_tokens": "Prompt tokens of completions that were begun",
    "cached_prompt_tokens": "Of these, found in the cache",
    "completion_tokens": "Tokens that the engines made",
}
"""Of `Load`, counted by the engines from their start: a replica that starts anew counts anew."""


class Metrics:
    """All that the gateway counts."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self._requests = Counter("slipway_requests", "Ended requests", (*_OF, "outcome"), registry=registry)
        self._tokens = Counter("slipway_streamed_tokens", "Tokens given to clients", _OF, registry=registry)
        self._first = Histogram(
            "slipway_first_token_seconds",
            "From the engine's hand-over to the first token, queue included",
            _OF,
            buckets=_FIRST_S,
            registry=registry,
        )
        self._each = Histogram(
            "slipway_token_seconds", "Of each token after the first", _OF, buckets=_TOKEN_S, registry=registry
        )
        self._under_way = Gauge("slipway_requests_under_way", "Requests at work", _OF, registry=registry)
        self._share = Gauge("slipway_version_share", "Of the model's requests", _OF, registry=registry)
        self._replicas = Gauge("slipway_replicas", "That answer", _OF, registry=registry)
        self._wait = Gauge("slipway_engine_queue_seconds", "The longest wait in an engine", _OF, registry=registry)
        self._step = Gauge("slipway_engine_step_seconds", "The slowest last step", _OF, registry=registry)
        self._loads = {
            name: Gauge(f"slipway_engine_{name}", text, _OF, registry=registry)
            for name, text in (_GAUGES | _TOTALS).items()
        }

    def ended(self, entry: Entry, request: Request) -> None:
        """Count a request; a copy for a version in the shadow as such."""
        of = (entry.model, entry.version)
        outcome = "copy" if entry.shadow else "error" if request.failed else "ok"
        self._requests.labels(*of, outcome).inc()
        self._tokens.labels(*of).inc(0 if entry.shadow else request.tokens)
        if request.first_token_s is not None:
            self._first.labels(*of).observe(request.first_token_s)
        if request.token_s is not None:
            self._each.labels(*of).observe(request.token_s)

    def exposition(self, versions: Iterable[tuple[Entry, int]], loads: Mapping[str, list[Load]]) -> bytes:
        """The text that Prometheus reads. Versions come with their requests under way; loads by application."""
        gauges = (self._under_way, self._share, self._replicas, self._wait, self._step, *self._loads.values())
        for gauge in gauges:
            gauge.clear()  # a version that is gone is told no more
        for entry, under_way in versions:
            of, found = (entry.model, entry.version), loads.get(entry.app, [])
            self._under_way.labels(*of).set(under_way)
            self._share.labels(*of).set(entry.share)
            self._replicas.labels(*of).set(len(found))
            if found:
                self._wait.labels(*of).set(max(load.oldest_wait_s for load in found))
                self._step.labels(*of).set(max(load.last_step_s for load in found))
            for name, gauge in self._loads.items():
                gauge.labels(*of).set(sum(getattr(load, name) for load in found))
        return generate_latest(self._registry)
