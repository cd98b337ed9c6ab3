"""The Ray Serve deployment: a replica proves its export, warms up, and only then takes requests."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.schema import LoggingConfig

from orchestrator.export.custom import prove_custom
from orchestrator.export.manifest import is_custom
from orchestrator.export.prove import ProvenModel, load_proven
from orchestrator.job import Serve
from orchestrator.serve.api.answer import Served
from orchestrator.serve.api.predict import ServedNetwork, build_predict_app
from orchestrator.serve.api.routes import HEALTH_TIMEOUT_S, build_app
from orchestrator.serve.engine.interleaved import Engine
from orchestrator.serve.engine.protocol import Sampling
from orchestrator.serve.engine.sequence import Sequence
from orchestrator.store import MARKER

_WARM_TOKENS = 4
_QUEUED_PER_SLOT = 4
"""Requests that may wait for each one that is worked on; beyond that a client had better come back later."""


@serve.ingress()
class Replica:
    """One copy of the model. Not ready before the export is proven in this very process."""

    def __init__(self, export: str, settings: dict[str, Any], model_name: str) -> None:
        """Raises StoreError or ServeError, which fails the deployment, as `load_proven`."""
        self._settings = Serve.model_validate(settings)
        torch.set_num_threads(self._settings.cpus)
        device = "cuda" if self._settings.gpus else "cpu"
        proven = load_proven(Path(export), precision=self._settings.precision, device=device)
        _warm(proven)
        self._served = Served(
            name=model_name,
            engine=Engine(proven, threads=self._settings.cpus),
            tokenizer=proven.tokenizer,
            eos_id=proven.eos_id,
            vocab_size=proven.allowed_size,
            context=proven.config.context,
            max_tokens=self._settings.max_tokens or proven.config.context,
            fingerprint=_fingerprint(proven),
            created=int((Path(export) / MARKER).stat().st_mtime),
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Ray Serve asks for the routes once the replica stands."""
        return build_app(self._served)

    async def check_health(self) -> None:
        """Ray Serve replaces a replica for which this raises: one whose engine makes no token."""
        await self._served.engine.check(timeout_s=HEALTH_TIMEOUT_S)


@serve.ingress()
class Predictor:
    """One copy of a network of the user's own. Not ready before the export is proven in this very process."""

    def __init__(self, export: str, settings: dict[str, Any], model_name: str) -> None:
        """Raises StoreError or ServeError, which fails the deployment, as `prove_custom`."""
        asked = Serve.model_validate(settings)
        torch.set_num_threads(asked.cpus)
        network = prove_custom(Path(export), precision=asked.precision, device="cuda" if asked.gpus else "cpu")
        created = int((Path(export) / MARKER).stat().st_mtime)
        self._served = ServedNetwork(name=model_name, network=network, created=created)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Ray Serve asks for the routes once the replica stands."""
        return build_predict_app(self._served)

    async def check_health(self) -> None:
        """Ray Serve replaces a replica for which this raises: one whose network predicts no more."""
        await self._served.check(timeout_s=HEALTH_TIMEOUT_S)


def _warm(proven: ProvenModel) -> None:
    """The first passes allocate and choose kernels: not at a client's expense."""
    sequence = Sequence(proven, [proven.eos_id], Sampling(max_tokens=_WARM_TOKENS, temperature=0.0))
    while sequence.step().finish_reason is None:
        pass


def _fingerprint(proven: ProvenModel) -> str:
    tensors = json.dumps(proven.manifest.tensors, sort_keys=True)
    return f"fp_{hashlib.sha256(tensors.encode()).hexdigest()[:12]}"


def build_application(export: Path, *, settings: Serve, model_name: str) -> Application:
    """The deployment that the job asks for, ready for `serve.run`."""
    replicas, slots = settings.replicas, settings.max_ongoing_requests
    scaling: dict[str, Any] = {"num_replicas": replicas.min}
    if replicas.max > replicas.min:
        scaling = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=replicas.min,
                max_replicas=replicas.max,
                target_ongoing_requests=max(1.0, slots / 2),
                upscale_delay_s=3.0,  # a replica takes seconds to start: sooner would chase noise
                downscale_delay_s=60.0,
                look_back_period_s=11.0,  # Serve's metrics come every 10 s, and it wants more than one
            )
        }
    deployment: Any = serve.deployment(  # Any: its stub knows the decorator's form only
        Predictor if is_custom(export) else Replica,
        name="model",
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        max_ongoing_requests=slots,
        max_queued_requests=slots * replicas.max * _QUEUED_PER_SLOT,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=1.0),
        max_constructor_retry_count=1,  # an export that does not prove does not prove the second time
        health_check_period_s=5.0,
        health_check_timeout_s=HEALTH_TIMEOUT_S + 5.0,
        graceful_shutdown_timeout_s=10.0,
        graceful_shutdown_wait_loop_s=0.1,
        logging_config=LoggingConfig(enable_access_log=False),
        **scaling,
    )
    application: Application = deployment.bind(str(export), settings.model_dump(), model_name)
    return application
