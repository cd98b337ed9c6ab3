"""The replicas of one version: each proves its export, warms up, and only then takes requests of the gateway."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any, Protocol, cast

import torch

from model.heads import EncoderHead
from orchestrator.cluster.standby import have_another_stand_by
from orchestrator.errors import SlipwayError
from orchestrator.export.custom import prove_custom
from orchestrator.export.prove import Proven, ProvenModel, load_proven, prove_export
from orchestrator.job import Serve
from orchestrator.serve.api.errors import ApiError
from orchestrator.serve.api.predict import ServedNetwork, parse_rows
from orchestrator.serve.api.routes import HEALTH_TIMEOUT_S
from orchestrator.serve.deployment.gateway import stored_table
from orchestrator.serve.deployment.pace import Pacer, whole
from orchestrator.serve.deployment.scaling import stats_of
from orchestrator.serve.engine.encoder import EncoderEngine
from orchestrator.serve.engine.encoder_protocol import Encoded
from orchestrator.serve.engine.make import make_engine
from orchestrator.serve.engine.protocol import EngineError, Load, Piece, Sampling

_TRY_TOKENS = 16
_SETTLED_S = 15.0
"""What starts for the next replica takes processor time from this one's first requests."""


class _Checkable(Protocol):
    async def check(self, *, timeout_s: float) -> None: ...


class _Replica:
    """What the fleet, `/healthz` and Ray Serve ask of every replica."""

    _checked: _Checkable
    """What it serves; its check raises EngineError where that makes nothing."""

    def _ready(self, settings: Serve) -> None:
        """At the end of a replica's start."""
        if settings.standby:
            have_another_stand_by(after_s=_SETTLED_S)

    async def check(self, timeout_s: float) -> str | None:
        """What is wrong with what it serves; None once that has made something."""
        try:
            await self._checked.check(timeout_s=timeout_s)
        except EngineError as error:
            return str(error)
        return None

    async def try_out(self) -> str | None:
        """What is wrong with what it makes, before it gets requests; None if nothing is."""
        return await self.check(HEALTH_TIMEOUT_S)

    async def check_health(self) -> None:
        """Ray Serve replaces a replica for which this raises."""
        await self._checked.check(timeout_s=HEALTH_TIMEOUT_S)


class Replica(_Replica):
    """One copy of a decoder. Not ready before the export is proven in this very process."""

    def __init__(self, export: str, settings: dict[str, Any], app: str) -> None:
        """Raises StoreError or ServeError, which fails the deployment, as `load_proven`."""
        self._settings = Serve.model_validate(settings)
        torch.set_num_threads(self._settings.cpus)
        # Weights may have been swapped into this application since it was deployed.
        self._export = next((entry.export for entry in stored_table() if entry.app == app), export)
        proven = self._proven(self._export)
        self._eos_id, self._context = proven.eos_id, proven.config.context
        self._checked = self._engine = make_engine(proven, Path(self._export), self._settings)
        self._ready_next: tuple[str, ProvenModel] | None = None
        """What `swap` goes on with, if it is asked for."""
        self._changing = asyncio.Lock()
        self._pacer = Pacer()
        self._ready(self._settings)

    async def generate(self, prompt_T: list[int], sampling: Sampling) -> AsyncGenerator[Piece | EngineError, None]:
        """As `InferenceEngine`; a failure is the last item, not raised: Ray would wrap it, with a traceback."""
        try:
            made = self._engine.generate(prompt_T, sampling)
            async with aclosing(self._pacer.paced(made) if sampling.in_pieces else whole(made)) as pieces:
                async for piece in pieces:
                    yield piece
        except EngineError as error:
            yield error

    async def try_out(self) -> str | None:
        """What is wrong with a few tokens that it makes for itself, each with its probability; None if nothing is."""
        asked = Sampling(max_tokens=min(_TRY_TOKENS, self._context - 1), temperature=0.0, logprobs=0)
        made: list[float] = []
        try:
            async for piece in self._engine.generate([self._eos_id], asked):
                made += [told.logprob for told in piece.logprobs if told.logprob is not None]
        except EngineError as error:
            return str(error)
        return None if all(map(math.isfinite, made)) else "its probabilities are no numbers"

    async def make_ready(self, export: str) -> SlipwayError | None:
        """Read and prove an export for `swap`; why it is refused is returned, not raised: Ray would wrap it."""
        async with self._changing:
            try:
                self._ready_next = (export, await asyncio.to_thread(self._proven, export))
            except SlipwayError as error:
                return error
        return None

    async def swap(self, export: str) -> float | EngineError:
        """Go on with the weights of another export of the same shape; returns for how many seconds no token was made.

        It is read and proven here where `make_ready` was not told of it.

        Raises:
            StoreError, ServeError: it does not prove.
        """
        async with self._changing:  # one that goes back comes while it still changes
            (name, proven), self._ready_next = self._ready_next or ("", None), None
            if export == self._export:
                return 0.0
            if proven is None or name != export:
                proven = await asyncio.to_thread(self._proven, export)
            try:
                blackout_s = await asyncio.to_thread(self._engine.swap, proven)
            except EngineError as error:
                return error
            self._export = export
            return blackout_s

    async def load(self) -> Load:
        """How busy the engine is."""
        return self._engine.load()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What Ray Serve hands to the scaling policy."""
        return stats_of(self._engine.load(), slots=self._settings.max_ongoing_requests)

    def _proven(self, export: str) -> ProvenModel:
        # vLLM takes what is free of a GPU.
        device = "cuda" if self._settings.gpus and self._settings.engine == "slipway" else "cpu"
        return load_proven(Path(export), precision=self._settings.precision, device=device)


class Encoder(_Replica):
    """One copy of an encoder. Not ready before the export is proven in this very process."""

    def __init__(self, export: str, settings: dict[str, Any], app: str) -> None:
        """Raises StoreError or ServeError, which fails the deployment, as `prove_export`."""
        asked = Serve.model_validate(settings)
        torch.set_num_threads(asked.cpus)
        proven = prove_export(Path(export), precision=asked.precision, device="cuda" if asked.gpus else "cpu")
        self._checked = self._engine = EncoderEngine(cast(Proven[EncoderHead], proven), threads=asked.cpus)
        self._ready(asked)

    async def encode(self, prompts_B: list[list[int]]) -> Encoded | EngineError:
        """As `EncoderEngine`; a failure is returned, not raised: Ray would wrap it, with a traceback."""
        try:
            return await self._engine.encode(prompts_B)
        except EngineError as error:
            return error


class Predictor(_Replica):
    """One copy of a network of the user's own. Not ready before the export is proven in this very process."""

    def __init__(self, export: str, settings: dict[str, Any], model: str) -> None:
        """Raises StoreError or ServeError, which fails the deployment, as `prove_custom`."""
        asked = Serve.model_validate(settings)
        torch.set_num_threads(asked.cpus)
        network = prove_custom(Path(export), precision=asked.precision, device="cuda" if asked.gpus else "cpu")
        self._checked = self._served = ServedNetwork(name=model, network=network, created=0)
        self._ready(asked)

    async def predict(self, body: bytes) -> list[Any] | ApiError | EngineError:
        """Predictions of the rows of a request's body; what is wrong with it is returned, not raised."""
        served = self._served
        try:
            columns = await asyncio.to_thread(parse_rows, body, served.network.config.columns, served.name)
            return await served.predict(columns)
        except (ApiError, EngineError) as error:
            return error
