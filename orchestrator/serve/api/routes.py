"""The HTTP routes: OpenAI's API over engines. Without Ray: any ASGI server can host them."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from orchestrator.serve.api import encoders
from orchestrator.serve.api.answer import Served
from orchestrator.serve.api.chat import ChatCompletion, ChatRequest
from orchestrator.serve.api.chat_answer import ChatAnswer
from orchestrator.serve.api.completions import Completion, CompletionRequest
from orchestrator.serve.api.desk import Desk, as_api_error, caller_of
from orchestrator.serve.api.encoders import ClassifyRequest, EmbeddingRequest, ServedEncoder
from orchestrator.serve.api.errors import ApiError, model_not_found
from orchestrator.serve.api.feedback import Feedback
from orchestrator.serve.api.front import Front
from orchestrator.serve.api.gate import Closed, Logged
from orchestrator.serve.api.limits import Bodies, Limits, Slots
from orchestrator.serve.api.models import Models
from orchestrator.serve.api.openapi import describe, taking
from orchestrator.serve.api.text_answer import TextAnswer
from orchestrator.serve.engine.protocol import EngineError

MAX_BODY_BYTES = Limits().body_bytes
HEALTH_TIMEOUT_S = 10.0
_FORMS = (
    *(CompletionRequest, Completion, ChatRequest, ChatCompletion),
    *(EmbeddingRequest, encoders.Embeddings, ClassifyRequest, encoders.Classes, Feedback),
)
_PAGES = Path(__file__).parent


def build_app(models: Models, front: Front, *, limits: Limits | None = None) -> FastAPI:
    """The routes of a service.

    Args:
        models: what is served.
        front: keys, limits and accounts; `OpenFront` has none of these, and is for loopback alone.
        limits: bounds of each request and of all; None: those of `Limits`.
    """
    limits = limits or Limits()
    desk = Desk(models, front, limits)
    app = FastAPI(title="Slipway", docs_url=None, redoc_url=None, openapi_url="/openapi.json")
    app.add_middleware(Closed, front=front, slots=Slots(limits))
    app.add_middleware(Logged)
    for router in (_about(desk), _generation(desk), _encoding(desk), _accounts(desk), _pages()):
        app.include_router(router)
    answer_errors(app)
    describe(app, _FORMS)
    return app


def _about(desk: Desk) -> APIRouter:
    router = APIRouter(tags=["service"])

    @router.get("/healthz", summary="Whether the service answers; needs no key")
    async def healthz() -> Response:
        try:
            await desk.models.check(timeout_s=HEALTH_TIMEOUT_S)
        except EngineError as error:
            raise ApiError(str(error), status=503) from error
        return JSONResponse({"status": "ok"})

    @router.get("/v1/models", summary="The models that this key may ask")
    async def models(request: Request) -> Response:
        data = [card.model_dump() for card in desk.cards(request)]
        return JSONResponse({"object": "list", "data": data})

    @router.get("/v1/models/{name:path}", summary="One of them")
    async def model(name: str, request: Request) -> Response:
        cards = {card.id: card for card in desk.cards(request)}
        if name not in cards:
            raise model_not_found(name, *cards)
        return JSONResponse(cards[name].model_dump())

    @router.get("/v1/whoami", summary="The key that asks")
    async def whoami(request: Request) -> Response:
        caller = caller_of(request)
        return JSONResponse({"key_id": caller.key_id, "name": caller.name, "scopes": sorted(caller.scopes)})

    return router


def _generation(desk: Desk) -> APIRouter:
    router = APIRouter(tags=["generation"])

    @router.post("/v1/completions", summary="Go on with a text", **taking(CompletionRequest, Completion))
    async def completions(request: Request) -> Response:
        asked = await desk.read(request, CompletionRequest)

        async def attempt(served: Served) -> Response:
            return await desk.generate(request, served, partial(TextAnswer.prepare, asked), stream=asked.stream)

        return await desk.ask(await desk.decoder(request, asked.model), attempt)

    @router.post("/v1/chat/completions", summary="Answer a chat", **taking(ChatRequest, ChatCompletion))
    async def chat_completions(request: Request) -> Response:
        asked = await desk.read(request, ChatRequest)

        async def attempt(served: Served) -> Response:
            return await desk.generate(request, served, partial(ChatAnswer.prepare, asked), stream=asked.stream)

        return await desk.ask(await desk.decoder(request, asked.model), attempt)

    return router


def _encoding(desk: Desk) -> APIRouter:
    router = APIRouter(tags=["encoders"])

    @router.post("/v1/embeddings", summary="Texts as vectors", **taking(EmbeddingRequest, encoders.Embeddings))
    async def embeddings(request: Request) -> Response:
        asked = await desk.read(request, EmbeddingRequest)

        async def attempt(served: ServedEncoder) -> Response:
            return await desk.encode(request, served, asked.input, partial(encoders.embed, asked, served))

        return await desk.ask(await desk.encoder(request, asked.model, classifies=False), attempt)

    @router.post("/v1/classify", summary="Texts to classes", **taking(ClassifyRequest, encoders.Classes))
    async def classify(request: Request) -> Response:
        asked = await desk.read(request, ClassifyRequest)

        async def attempt(served: ServedEncoder) -> Response:
            return await desk.encode(request, served, asked.input, partial(encoders.classify, served))

        return await desk.ask(await desk.encoder(request, asked.model, classifies=True), attempt)

    return router


def _accounts(desk: Desk) -> APIRouter:
    router = APIRouter(tags=["accounts"])

    @router.post("/v1/feedback", summary="What you think of an answer", **taking(Feedback))
    async def feedback(request: Request) -> Response:
        given = await desk.read(request, Feedback)
        await desk.front.feedback(caller_of(request), given)
        return JSONResponse({"object": "feedback", "id": given.id})

    @router.get("/v1/usage", summary="What a key has used, by model, version and day")
    async def usage(request: Request, key: str | None = None, day: str | None = None) -> Response:
        if day is not None and not _is_day(day):
            raise ApiError("day: must be YYYY-MM-DD", param="day")
        rows = await desk.front.usage(caller_of(request), key_id=key, day=day)
        return JSONResponse({"object": "list", "data": [dataclasses.asdict(row) for row in rows]})

    return router


def _is_day(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _pages() -> APIRouter:
    router = APIRouter(include_in_schema=False)
    page, docs = _read_page("page.html"), _read_page("docs.html")

    @router.get("/")
    async def try_it() -> Response:
        return HTMLResponse(page.text, headers=page.headers)

    @router.get("/docs")
    async def documentation() -> Response:
        return HTMLResponse(docs.text, headers=docs.headers)

    return router


@dataclass(frozen=True)
class _Page:
    text: str
    headers: dict[str, str]


def _read_page(name: str) -> _Page:
    """A page of ours, which may load and run nothing but what stands in it, and ask nobody but this service."""
    text = (_PAGES / name).read_text(encoding="utf-8")
    script, style = (_hash(text.split(f"<{tag}>", 1)[1].split(f"</{tag}>", 1)[0]) for tag in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "content-security-policy": policy,
        "cache-control": "no-store",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
    return _Page(text, headers)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


async def read_body(request: Request) -> bytes:
    """The body, refused as soon as it is too large or too slow; see `Bodies`."""
    return await Bodies().read(request)


def answer_errors(app: FastAPI) -> None:
    """Every error in OpenAI's form, none with a traceback."""

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        message = f"{error.detail}: {request.method} {request.url.path}"
        told = ApiError(message, status=error.status_code, code="unknown_url")
        return JSONResponse(told.body(), told.status, error.headers)

    async def failed(request: Request, error: Exception) -> Response:
        told = as_api_error(error)
        return JSONResponse(told.body(), told.status, told.headers)

    for kind in (ApiError, EngineError, Exception):
        app.add_exception_handler(kind, failed)
