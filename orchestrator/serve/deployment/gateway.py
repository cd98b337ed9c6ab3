"""The gateway: the one deployment that hears HTTP. It hands the work to the replicas of a model's versions.

Imports no torch: it is there a second or two after it was asked for.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import anyio
import pydantic_core
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from ray import serve
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

from orchestrator.cluster.standby import have_another_stand_by
from orchestrator.job import Serve
from orchestrator.serve.accounts.front import Policy, open_accounts
from orchestrator.serve.accounts.prices import Price
from orchestrator.serve.api.desk import caller_of
from orchestrator.serve.api.errors import ApiError
from orchestrator.serve.api.front import Front
from orchestrator.serve.api.limits import Bodies, Limits
from orchestrator.serve.api.listener import Listener
from orchestrator.serve.api.routes import build_app
from orchestrator.serve.deployment.catalogue import Backend, Catalogue
from orchestrator.serve.deployment.metrics import CONTENT_TYPE, Metrics
from orchestrator.serve.deployment.observe import Seen
from orchestrator.serve.deployment.remote import RemoteEngine, handle_of
from orchestrator.serve.deployment.table import Entry, Table
from orchestrator.serve.engine.protocol import EngineError, Load

_SETTLED_S = 15.0
"""Who starts a service has more to start until then."""
DEPLOYMENT = "gateway"
_KEY, _NAMESPACE = b"table", b"slipway"


def stored_table() -> Table:
    """The table that this Ray keeps: what a gateway that starts anew answers from. Needs a Ray that was joined."""
    data = _internal_kv_get(_KEY, namespace=_NAMESPACE)
    return tuple(Entry.from_json(entry) for entry in json.loads(data)) if data else ()


def store_table(table: Iterable[Entry]) -> None:
    """Keep another table; an empty one is forgotten."""
    entries = [entry.as_json() for entry in table]
    if entries:
        _internal_kv_put(_KEY, json.dumps(entries).encode(), namespace=_NAMESPACE)
    else:
        _internal_kv_del(_KEY, namespace=_NAMESPACE)


class Gateway:
    """The routes, over a table of versions that changes while requests are under way."""

    def __init__(self, settings: dict[str, Any]) -> None:
        """Raises AccountsError: they cannot be opened."""
        self._metrics = Metrics()
        self._catalogue = Catalogue(lambda entry: RemoteEngine(handle_of(entry.app)), self._metrics.ended)
        self._settings = Serve.model_validate(settings)
        self._front = _front(self._settings)
        self._taking = asyncio.Lock()
        self._catalogue.take(stored_table())

    def routes(self) -> FastAPI:
        """All that it answers."""
        app = build_app(self._catalogue, self._front)
        app.include_router(predictions(self._catalogue, self._front))

        @app.get("/metrics", tags=["service"], summary="What Prometheus reads")
        async def metrics() -> Response:
            return Response(await self._exposition(), media_type=CONTENT_TYPE)

        return app

    async def route(self) -> None:
        """Answer from the table that is stored now."""
        async with self._taking:
            # In a thread: it reads tokenizers, while others' streams go on.
            await asyncio.to_thread(lambda: self._catalogue.take(stored_table()))
            self._catalogue.end_copies()

    async def seen(self, app: str, last_s: float) -> Seen:
        """What clients have had of one version in the last seconds."""
        return self._catalogue.seen(app, last_s)

    async def _exposition(self) -> bytes:
        backends = self._catalogue.backends
        loads = await asyncio.gather(*(_loads(backend) for backend in backends))
        versions = [(backend.entry, backend.observer.under_way) for backend in backends]
        return self._metrics.exposition(
            versions, {backend.entry.app: found for backend, found in zip(backends, loads, strict=True)}
        )

    async def under_way(self, app: str) -> int:
        """Requests that a version works on."""
        return self._catalogue.under_way(app)


class ListeningGateway(Gateway):
    """It has a port of its own: nothing stands between a client and the routes."""

    async def __init__(self, settings: dict[str, Any], host: str, port: int) -> None:  # type: ignore[misc]
        """Listens from its return on; Ray Serve awaits it.

        Raises:
            AccountsError: they cannot be opened.
            ServeError: the port is taken.
        """
        super().__init__(settings)
        self._listener = await Listener.open(self.routes(), host=host, port=port)
        if self._settings.standby:
            have_another_stand_by(after_s=_SETTLED_S)

    async def check_health(self) -> None:
        """Ray Serve starts it anew where this raises, or does not return."""
        if not self._listener.listens:
            raise EngineError("the gateway listens no more")


@serve.ingress()
class ProxiedGateway(Gateway):
    """Ray Serve's proxies hear for it, on every node."""

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Ray Serve asks for the routes once the gateway stands."""
        return self.routes()


async def _loads(backend: Backend) -> list[Load]:
    """Of the replicas of a decoder."""
    if backend.entry.facts.kind != "decoder" or not isinstance(backend.engine, RemoteEngine):
        return []
    return await backend.engine.loads()


def _front(settings: Serve) -> Front:
    prices = {model: Price(**price.model_dump()) for model, price in settings.prices.items()}
    policy = Policy(prices=prices, store_prompts=settings.store_prompts)
    return open_accounts(policy, settings.accounts)


def predictions(catalogue: Catalogue, front: Front) -> APIRouter:
    """`POST /v1/predict`: to the replicas of a network of the user's own."""
    router = APIRouter(tags=["prediction"])
    bodies = Bodies(Limits())

    @router.post("/v1/predict", summary="Predict rows with a network of the user's own")
    async def predict(request: Request) -> Response:
        body = await bodies.read(request)
        model = await asyncio.to_thread(_model_of, body, catalogue)
        await front.require(caller_of(request), scope="generate", model=model)
        backend = catalogue.pick(model)
        try:
            return await attempt(request, backend, body)
        except EngineError:
            if (other := catalogue.instead(backend.entry)) is None:
                raise
        return await attempt(request, other, body)

    async def attempt(request: Request, backend: Backend, body: bytes) -> Response:
        entry = backend.entry
        _require_predicting(backend)
        admission = await front.admit(
            caller_of(request),
            scope="generate",
            model=entry.model,
            version=entry.version,
            prompt_tokens=0,
            max_tokens=0,
        )
        catalogue.copy(entry.model, lambda other: _unheard(other, body))
        failed = True
        try:
            found = await _predicted(backend, body)
            failed = False
        finally:
            with anyio.CancelScope(shield=True):
                await admission.settle(prompt_tokens=0, completion_tokens=0, failed=failed)
        headers = {"x-slipway-version": entry.version, **admission.headers}
        return JSONResponse({"model": entry.model, "predictions": found}, headers=headers)

    return router


def _require_predicting(backend: Backend) -> RemoteEngine:
    """Raises ApiError: it is no network of the user's own."""
    if backend.served is not None or not isinstance(backend.engine, RemoteEngine):
        raise ApiError(
            f"The model `{backend.entry.model}` predicts no rows; it reads text",
            param="model",
            code="wrong_kind_of_model",
        )
    return backend.engine


async def _unheard(backend: Backend, body: bytes) -> None:
    await _predicted(backend, body)


async def _predicted(backend: Backend, body: bytes) -> list[Any]:
    engine = _require_predicting(backend)
    request, failed = backend.observer.begin(), True
    try:
        found = await engine.predict(body)
        backend.observer.made(request, 1)
        failed = False
        return found
    except ApiError:
        failed = False  # the client's mistake
        raise
    finally:
        backend.observer.end(request, failed=failed)


def _model_of(body: bytes, catalogue: Catalogue) -> str:
    """The model that a body names; the only one that predicts where it names none. The replica checks the rest."""
    try:
        data = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(f"We could not parse the JSON body of your request: {error}") from None
    if isinstance(data, dict) and isinstance(data.get("model"), str):
        return str(data["model"])
    custom = sorted({entry.model for entry in catalogue.table if entry.facts.kind == "custom"})
    if len(custom) == 1:
        return custom[0]
    raise ApiError(f"you must provide a model parameter; there are {', '.join(custom) or 'none'}", param="model")
