"""The applications on Ray Serve: the gateway, and one for each version of a model, which has no route of its own."""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.schema import LoggingConfig

from orchestrator.job import Serve
from orchestrator.serve.deployment import gateway, remote
from orchestrator.serve.deployment.scaling import replicas_wanted
from orchestrator.serve.deployment.table import Entry

_AT_REPLICA_PER_SLOT = 2
"""Requests that a replica has for each one that it works on: those that wait there are seen by the scaling."""
_QUEUED_PER_SLOT = 2
"""Requests that wait in the gateway besides; beyond that a client had better come back later."""
_DRAIN_S = 600.0
"""How long a replica that is no longer needed may go on with what it has begun."""
_GATEWAY_REQUESTS = 10_000
"""More than there may be: what there may be the replicas say, and the limits of the routes."""


def gateway_application(settings: Serve) -> Any:
    """The gateway, with the accounts that a job names."""
    deployment: Any = serve.deployment(  # Any: its stub knows the decorator's form only
        gateway.Gateway,
        name=gateway.DEPLOYMENT,
        ray_actor_options={"num_cpus": 0},  # it mostly waits; a core of its own would be one less for the networks
        max_ongoing_requests=_GATEWAY_REQUESTS,
        health_check_period_s=2.0,
        health_check_timeout_s=10.0,
        graceful_shutdown_timeout_s=10.0,
        graceful_shutdown_wait_loop_s=0.1,
        logging_config=LoggingConfig(enable_access_log=False),
    )
    return deployment.bind(settings.model_dump())


def version_application(entry: Entry, settings: Serve, *, cpus: float | None) -> Any:
    """The replicas of a version; `cpus` is what Ray sets aside for each, None: what it computes on."""
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
        ray_actor_options={"num_cpus": settings.cpus if cpus is None else cpus, "num_gpus": settings.gpus},
        max_ongoing_requests=slots * _AT_REPLICA_PER_SLOT,
        max_queued_requests=slots * replicas.max * _QUEUED_PER_SLOT,
        max_constructor_retry_count=1,  # an export that does not prove does not prove the second time
        health_check_period_s=5.0,
        health_check_timeout_s=15.0,
        graceful_shutdown_timeout_s=_DRAIN_S,
        graceful_shutdown_wait_loop_s=0.1,
        logging_config=LoggingConfig(enable_access_log=False),
        **scaling,
    )
    return deployment.bind(
        entry.export, settings.model_dump(), entry.model if entry.facts.kind == "custom" else entry.app
    )
