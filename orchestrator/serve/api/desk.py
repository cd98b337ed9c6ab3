"""What all routes share: who asks, the body, the admission, and an answer that is settled once."""

from __future__ import annotations

import asyncio
import json
import logging
import traceback
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import anyio
from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel

from orchestrator.serve.api.answer import Served, parts
from orchestrator.serve.api.completions import ModelCard
from orchestrator.serve.api.encoders import ServedEncoder, tokenise
from orchestrator.serve.api.errors import ApiError, model_not_found
from orchestrator.serve.api.front import Admission, Caller, Front, Scope
from orchestrator.serve.api.limits import Bodies, Limits
from orchestrator.serve.api.meter import Answer, EventStream, Meter, preceded, unless_gone
from orchestrator.serve.api.models import Models
from orchestrator.serve.api.request import Closed, parse
from orchestrator.serve.engine.protocol import EngineBusyError, EngineError

_LARGE_BYTES = 1 << 16
"""Bodies from here on are parsed in a thread: a megabyte of token ids would hold up everybody else's stream."""
_Form = TypeVar("_Form", bound=Closed)
_Version = TypeVar("_Version", Served, ServedEncoder)
_log = logging.getLogger(__name__)


def caller_of(request: Request) -> Caller:
    """Who asks; `gate.Closed` has found out."""
    caller: Caller = request.scope["state"]["caller"]
    return caller


class Desk:
    """Answers requests for one service."""

    def __init__(self, models: Models, front: Front, limits: Limits) -> None:
        self.models = models
        self.front = front
        self._limits = limits
        self._bodies = Bodies(limits)

    async def read(self, request: Request, form: type[_Form]) -> _Form:
        """The body, checked; see `Bodies` and `parse`."""
        body = await self._bodies.read(request)
        if len(body) < _LARGE_BYTES:
            return parse(form, body)
        return await asyncio.to_thread(parse, form, body)

    async def decoder(self, request: Request, name: str) -> Served:
        """The model of this name, which writes text.

        Raises:
            ApiError: the key may not ask it, there is none, or it does not.
        """
        served = await self._chosen(request, name, "generate")
        if isinstance(served, ServedEncoder):
            raise _wrong_kind(name, "/v1/classify" if served.labels else "/v1/embeddings")
        return served

    async def encoder(self, request: Request, name: str, *, classifies: bool) -> ServedEncoder:
        """The encoder of this name.

        Raises:
            ApiError: the key may not ask it, there is none, or it is no such model.
        """
        served = await self._chosen(request, name, "embed")
        if not isinstance(served, ServedEncoder):
            raise _wrong_kind(name, "/v1/completions")
        if bool(served.labels) != classifies:
            raise _wrong_kind(name, "/v1/classify" if served.labels else "/v1/embeddings")
        return served

    def cards(self, request: Request) -> list[ModelCard]:
        """The models that the key may ask."""
        allowed = caller_of(request).models
        return [card for card in self.models.cards() if allowed is None or card.id in allowed]

    async def _chosen(self, request: Request, name: str, scope: Scope) -> Served | ServedEncoder:
        # Before anything is said of the model: others' models are none of this key's business.
        await self.front.require(caller_of(request), scope=scope, model=name)
        cards = [card.id for card in self.cards(request)]
        if name not in cards:
            raise model_not_found(name, *cards)
        return self.models.choose(name)

    async def admit(
        self, request: Request, served: Served | ServedEncoder, *, scope: Scope, prompt_tokens: int, max_tokens: int
    ) -> Admission:
        """Let a request in.

        Raises:
            ApiError: as `Front.admit`.
        """
        _log_of(request).update(model=served.name, version=served.version)
        return await self.front.admit(
            caller_of(request),
            scope=scope,
            model=served.name,
            version=served.version,
            prompt_tokens=prompt_tokens,
            max_tokens=max_tokens,
        )

    async def ask(self, served: _Version, attempt: Callable[[_Version], Coroutine[Any, Any, Response]]) -> Response:
        """What a version answers; where it fails before anything was told, what the one beside it does.

        Raises:
            ApiError: as `attempt`.
            EngineError: both have failed, or there is no other.
        """
        try:
            return await attempt(served)
        except EngineError:
            if (other := served.instead()) is None:
                raise
        return await attempt(other)

    async def generate(
        self,
        request: Request,
        served: Served,
        prepare: Callable[[Served], Coroutine[Any, Any, Answer]],
        *,
        stream: bool,
    ) -> Response:
        """Make an answer, whole or as a stream, of what `prepare` makes of the request for a version.

        Raises:
            ApiError: as `prepare`; not admitted, the client has gone, or the deadline has passed.
            EngineError: the engine failed before anything was sent.
        """
        answer = await prepare(served)
        work = answer.work
        admission = await self.admit(
            request, work.served, scope="generate", prompt_tokens=work.prompt_tokens, max_tokens=work.max_tokens
        )
        served.copy(lambda other: self._unheard(prepare, other))
        meter = Meter(admission, answer, keeps_text=self.front.keeps_text, log=_log_of(request))
        try:
            if stream:
                return await self._stream(request, answer, meter)
            body = await unless_gone(request, answer.whole(deadline_s=self._limits.total_s))
        except BaseException as error:
            await meter.settle(failed=isinstance(error, Exception) and not isinstance(error, ApiError))
            raise
        await meter.settle(ended=True)
        return Response(body, media_type="application/json", headers=meter.headers)

    async def encode(
        self,
        request: Request,
        served: ServedEncoder,
        inputs: Sequence[str | list[int]],
        work: Callable[[list[list[int]]], Coroutine[Any, Any, BaseModel]],
    ) -> Response:
        """Answer with what `work` makes of the token ids of these inputs.

        Raises:
            ApiError: as `tokenise`; not admitted, or the client has gone.
            EngineError: the engine failed.
        """
        ids = await tokenise(inputs, served)
        count = sum(map(len, ids))
        admission = await self.admit(request, served, scope="embed", prompt_tokens=count, max_tokens=0)
        served.copy(lambda other: _encode_unheard(inputs, other))
        failed = True
        try:
            document = await unless_gone(request, work(ids))
            failed = False
        finally:
            with anyio.CancelScope(shield=True):
                await admission.settle(prompt_tokens=count, completion_tokens=0, failed=failed)
        headers = {"x-slipway-version": served.version, **admission.headers}
        return Response(document.model_dump_json(), media_type="application/json", headers=headers)

    async def _unheard(self, prepare: Callable[[Served], Coroutine[Any, Any, Answer]], other: Served) -> None:
        """Have a version make the same answer, for nobody."""
        answer = await prepare(other)
        async with aclosing(parts(answer.work, deadline_s=self._limits.total_s)) as pieces:
            async for _ in pieces:
                pass

    async def _stream(self, request: Request, answer: Answer, meter: Meter) -> Response:
        """The status is sent with the first document: what fails before that has a status of its own."""
        documents = answer.stream(deadline_s=self._limits.total_s)
        try:
            first = await unless_gone(request, _first(documents))
        except BaseException:
            with anyio.CancelScope(shield=True):
                await documents.aclose()
            raise
        return EventStream(_events(preceded(first, documents), meter), meter, total_s=self._limits.total_s)


async def _encode_unheard(inputs: Sequence[str | list[int]], other: ServedEncoder) -> None:
    await other.engine.encode(await tokenise(inputs, other))


async def _first(documents: AsyncGenerator[str, None]) -> str | None:
    return await anext(documents, None)


async def _events(documents: AsyncGenerator[str, None], meter: Meter) -> AsyncGenerator[str, None]:
    """Server-sent events, closed by [DONE] or by an error: the status 200 has been sent long before."""
    try:
        async with aclosing(documents):
            async for document in documents:
                yield f"data: {document}\n\n"
        # Before the end is told: whoever has read it may speak of the answer.
        await meter.settle(ended=True)
        yield "data: [DONE]\n\n"
    except Exception as error:  # noqa: BLE001 - a bug must end in an event too, for the status has been sent
        await meter.settle(failed=not isinstance(error, ApiError))
        yield f"data: {json.dumps(as_api_error(error).body())}\n\n"


def as_api_error(error: Exception) -> ApiError:
    """What a client is told of an error; what is told of a bug has no details."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, EngineBusyError):
        return ApiError(str(error), status=429, code="engine_busy", headers={"retry-after": "1"})
    if isinstance(error, EngineError):
        return ApiError(str(error), status=500)
    # Neither the error's own words nor its arguments: they may hold what somebody asked.
    frames = "".join(traceback.format_tb(error.__traceback__))
    _log.error("a request failed with %s\n%s", type(error).__name__, frames)
    return ApiError("The server had an error while processing your request", status=500)


def _wrong_kind(name: str, route: str) -> ApiError:
    return ApiError(f"The model `{name}` does not answer here: ask {route}", param="model", code="wrong_kind_of_model")


def _log_of(request: Request) -> dict[str, Any]:
    log: dict[str, Any] = request.scope["state"].setdefault("log", {})
    return log
