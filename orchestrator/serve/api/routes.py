"""The HTTP routes: OpenAI's completions API over an engine. Without Ray: any ASGI server can host them."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from orchestrator.serve.api import answer as completion
from orchestrator.serve.api.answer import Prepared, Served
from orchestrator.serve.api.completions import ModelCard, parse_completion_request
from orchestrator.serve.api.errors import ApiError, model_not_found
from orchestrator.serve.engine.protocol import EngineError

MAX_BODY_BYTES = 4 << 20
"""Room for 128 prompts of several thousand tokens; Ray Serve alone would take 256 MB."""
HEALTH_TIMEOUT_S = 10.0
_log = logging.getLogger(__name__)


def build_app(served: Served) -> FastAPI:
    """The routes of one served model."""
    app = FastAPI(title="Slipway", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/healthz")
    async def healthz() -> Response:
        try:
            await served.engine.check(timeout_s=HEALTH_TIMEOUT_S)
        except EngineError as error:
            raise ApiError(str(error), status=503) from error
        return JSONResponse({"status": "ok", "model": served.name})

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [_card(served).model_dump()]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        if name != served.name:
            raise model_not_found(name, served.name)
        return JSONResponse(_card(served).model_dump())

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        prepared = await completion.prepare(parse_completion_request(await read_body(request)), served)
        if prepared.request.stream:
            return StreamingResponse(_events(prepared), media_type="text/event-stream")
        answer = await completion.whole(prepared)
        return Response(answer.model_dump_json(), media_type="application/json")

    answer_errors(app)
    return app


def _card(served: Served) -> ModelCard:
    return ModelCard(id=served.name, created=served.created)


async def read_body(request: Request) -> bytes:
    """The body, refused as soon as it is too large."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise ApiError(f"The body of your request is larger than {MAX_BODY_BYTES} bytes", status=413)
    return bytes(body)


async def _events(prepared: Prepared) -> AsyncGenerator[str, None]:
    """Server-sent events, closed by [DONE] or by an error: the status 200 has been sent long before."""
    try:
        async with aclosing(completion.stream(prepared)) as chunks:
            async for chunk in chunks:
                yield f"data: {chunk}\n\n"
        yield "data: [DONE]\n\n"
    except EngineError as error:
        yield f"data: {json.dumps(ApiError(str(error), status=500).body())}\n\n"


def answer_errors(app: FastAPI) -> None:
    """Every error in OpenAI's form, none with a traceback."""

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        return JSONResponse(error.body(), error.status, error.headers)

    @app.exception_handler(EngineError)
    async def engine_failed(request: Request, error: EngineError) -> Response:
        return JSONResponse(ApiError(str(error), status=500).body(), 500)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        message = f"{error.detail}: {request.method} {request.url.path}"
        return JSONResponse(ApiError(message, status=error.status_code, code="unknown_url").body(), error.status_code)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        _log.error("a request failed", exc_info=error)
        return JSONResponse(ApiError("The server had an error while processing your request", status=500).body(), 500)
