"""The applications on Ray Serve: the gateway, and one for each version of a model, which has no route of its own."""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.schema import LoggingConfig

from orchestrator.cluster import template
from orchestrator.cluster.machines import HEAD
from orchestrator.errors import ServeError
from orchestrator.job import Serve
from orchestrator.serve.deployment import gateway, remote
from orchestrator.serve.deployment.scaling import replicas_wanted
from orchestrator.serve.deployment.table import Entry

_AT_REPLICA_PER_SLOT = 2
"""Requests that a replica has for each one that it works on: those that wait there are seen by the scaling."""
_QUEUED_PER_SLOT = 2
"""Requests that wait in the gateway besides, of the largest number of replicas; beyond that a client gets a 429."""
_LOOK_EVERY_S = 0.05
"""How often a request that waits looks for room; up to 0.5 s by default, in which a replica may have run dry."""
_DRAIN_S = 600.0
"""How long a replica that is no longer needed may go on with what it has begun."""
_QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)
"""Serve makes a line of its log for each request even where no file gets it."""
IMPORTS = "ray.serve._private.replica,orchestrator.serve.deployment.gateway,orchestrator.serve.deployment.replica"
"""Of all that serves."""
_GATEWAY_IMPORTS = "ray.serve._private.replica,orchestrator.serve.deployment.gateway"
_REPLICA_IMPORTS = "ray.serve._private.replica,orchestrator.serve.deployment.replica"
_GATEWAY_REQUESTS = 10_000
"""More than there may be: what there may be the replicas say, and the limits of the routes."""


def gateway_application(settings: Serve, *, host: str, port: int) -> Any:
    """The gateway, with the accounts that a job names. It listens on the machine of Ray's head."""
    return _gateway(gateway.ListeningGateway, {HEAD: 0.001}).bind(settings.model_dump(), host, port)


def proxied_gateway_application(settings: Serve) -> Any:
    """The gateway behind Ray Serve's own proxies, wherever it runs."""
    return _gateway(gateway.ProxiedGateway, {}).bind(settings.model_dump())


def _gateway(kind: type, resources: dict[str, float]) -> Any:
    deployment: Any = serve.deployment(  # Any: its stub knows the decorator's form only
        kind,
        name=gateway.DEPLOYMENT,
        # It mostly waits; a core of its own would be one less for the networks.
        ray_actor_options={"num_cpus": 0, "resources": resources, "runtime_env": _importing(_GATEWAY_IMPORTS)},
        max_ongoing_requests=_GATEWAY_REQUESTS,
        health_check_period_s=0.5,
        health_check_timeout_s=10.0,
        graceful_shutdown_timeout_s=10.0,
        graceful_shutdown_wait_loop_s=0.1,
        logging_config=_QUIET,
    )
    return deployment


def _importing(modules: str) -> dict[str, Any]:
    """The environment of processes that may stand by with these modules imported."""
    return template.environment(modules, template=IMPORTS)


def most_requests(settings: Serve) -> int:
    """Requests of a version that may be under way at once: those at its replicas, and those that wait besides."""
    return settings.max_ongoing_requests * settings.replicas.max * (_AT_REPLICA_PER_SLOT + _QUEUED_PER_SLOT)


def version_application(entry: Entry, settings: Serve, *, cpus: float | None) -> Any:
    """The replicas of a version; `cpus` is what Ray sets aside for each, None: what it computes on.

    Raises:
        ServeError: vLLM is asked to serve what it does not.
    """
    if settings.engine == "vllm" and entry.facts.kind != "decoder":
        raise ServeError(f"serve.engine vllm serves decoders; {entry.model} is none", fix="leave serve.engine out")
    # Not at the top: it imports torch, which the proof does in its thread while Serve starts.
    from orchestrator.serve.deployment.replica import Encoder, Predictor, Replica

    replicas, slots = settings.replicas, settings.max_ongoing_requests
    scaling: dict[str, Any] = {"num_replicas": replicas.min}
    if replicas.max > replicas.min:  # among them all that may sleep
        scaling = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=replicas.min,
                initial_replicas=max(1, replicas.min),  # a version that comes has to show that it can
                max_replicas=replicas.max,
                policy=AutoscalingPolicy(policy_function=replicas_wanted),  # type: ignore[no-untyped-call]
                target_ongoing_requests=slots / 2,
                metrics_interval_s=0.5,
                look_back_period_s=1.0,
                upscale_delay_s=1.0,
                downscale_delay_s=30.0,
                downscale_to_zero_delay_s=60.0,
            )
        }
    kinds = {"decoder": Replica, "encoder": Encoder, "custom": Predictor}
    deployment: Any = serve.deployment(
        kinds[entry.facts.kind],
        name=remote.DEPLOYMENT,
        ray_actor_options={
            "num_cpus": settings.cpus if cpus is None else cpus,
            "num_gpus": settings.gpus,
            "runtime_env": _importing(_REPLICA_IMPORTS),
        },
        max_ongoing_requests=slots * _AT_REPLICA_PER_SLOT,
        request_router_config=RequestRouterConfig(max_backoff_s=_LOOK_EVERY_S),  # type: ignore[arg-type]  # its stub errs
        # All that may be under way: the gateway keeps the bound. Those on their way to a replica that has room count
        # here as well, and while some replicas are yet to start they all wait here.
        max_queued_requests=most_requests(settings),
        max_constructor_retry_count=1,  # an export that does not prove does not prove the second time
        health_check_period_s=5.0,
        health_check_timeout_s=15.0,
        graceful_shutdown_timeout_s=_DRAIN_S,
        graceful_shutdown_wait_loop_s=0.1,
        logging_config=_QUIET,
        **scaling,
    )
    return deployment.bind(
        entry.export, settings.model_dump(), entry.model if entry.facts.kind == "custom" else entry.app
    )
