"""Which engine a decoder's replica has: ours, or vLLM."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from orchestrator.export.prove import ProvenModel
from orchestrator.job import Serve
from orchestrator.serve.engine.batching import Engine
from orchestrator.serve.engine.protocol import InferenceEngine, Load
from orchestrator.serve.engine.vllm_engine import VllmEngine

WAITING_PER_SLOT = 2
"""Requests that may wait in a replica's engine for each one that it works on."""


class ReplicaEngine(InferenceEngine, Protocol):
    """What a replica needs of an engine besides completions."""

    def load(self) -> Load:
        """How busy it is."""
        ...

    def swap(self, proven: ProvenModel) -> float:
        """Go on with other weights; returns the seconds for which no token was made.

        Raises:
            EngineError: it cannot.
        """
        ...


def make_engine(proven: ProvenModel, export: Path, settings: Serve) -> ReplicaEngine:
    """The engine that the job asks for, ready.

    Args:
        proven: of the export; vLLM lets go of its weights.
        export: what vLLM opens.
        settings: of the service.

    Raises:
        ServeError: vLLM is asked for and not there; the settings do not go together.
    """
    slots = settings.max_ongoing_requests
    if settings.engine == "vllm":
        return VllmEngine(proven, export, settings, max_waiting=slots * WAITING_PER_SLOT)
    return Engine(
        proven,
        threads=settings.cpus,
        max_running=slots,
        max_waiting=slots * WAITING_PER_SLOT,
        cache_tokens=settings.cache_tokens,
        int8=settings.int8,
    )
