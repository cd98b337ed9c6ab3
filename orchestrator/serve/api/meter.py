"""Counts what a request has used, and says so exactly once, whatever becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

import anyio
from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from orchestrator.serve.api.answer import Work
from orchestrator.serve.api.front import Admission, Answered
from orchestrator.serve.api.limits import client_gone

_T = TypeVar("_T")
_READER_S = 5.0
"""What a client that has stopped reading gets beyond the deadline of its request."""


class Answer(Protocol):
    """An answer that is being made, in one of OpenAI's forms."""

    @property
    def work(self) -> Work:
        """What is made."""
        ...

    @property
    def completions(self) -> Mapping[int, str]:
        """What each choice has said so far."""
        ...

    @property
    def prompts(self) -> tuple[str, ...]:
        """What was asked."""
        ...

    async def whole(self, *, deadline_s: float | None = None) -> str:
        """The answer in one piece, as JSON."""
        ...

    def stream(self, *, deadline_s: float | None = None) -> AsyncGenerator[str, None]:
        """The answer as JSON documents."""
        ...


class Meter:
    """Settles the admission of one answer."""

    def __init__(self, admission: Admission, answer: Answer, *, keeps_text: bool, log: dict[str, Any]) -> None:
        self.headers = {"x-slipway-version": answer.work.served.version, **admission.headers}
        self._admission: Admission | None = admission
        self._answer = answer
        self._keeps_text = keeps_text
        self._log = log

    async def settle(self, *, failed: bool = False, ended: bool = False) -> None:
        """The first call counts; others do nothing. `ended`: the answer came to its end."""
        admission, self._admission = self._admission, None
        if admission is None:
            return
        work = self._answer.work
        self._log |= {"prompt_tokens": work.prompt_tokens, "completion_tokens": work.completion_tokens}
        # Shielded: what a client had is counted also when it has gone, which cancels everything here.
        with anyio.CancelScope(shield=True):
            await admission.settle(
                prompt_tokens=work.prompt_tokens,
                completion_tokens=work.completion_tokens,
                failed=failed,
                answered=self._answered() if ended else None,
            )

    def _answered(self) -> Answered:
        if not self._keeps_text:
            return Answered(id=self._answer.work.id, prompts=None, completions=None)
        completions = tuple(text for _, text in sorted(self._answer.completions.items()))
        return Answered(id=self._answer.work.id, prompts=self._answer.prompts, completions=completions)


class EventStream(StreamingResponse):
    """Server-sent events whose meter is settled also when nobody reads them to the end."""

    def __init__(self, events: AsyncGenerator[str, None], meter: Meter, *, total_s: float | None) -> None:
        super().__init__(events, media_type="text/event-stream", headers={**meter.headers, "cache-control": "no-store"})
        self._events = events
        self._meter = meter
        self._total_s = total_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        try:
            # The events keep the deadline themselves, with an error for the client; but not while it does not read.
            with anyio.move_on_after(None if self._total_s is None else self._total_s + _READER_S):
                await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._events.aclose()
                await self._meter.settle()


async def unless_gone(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """What `work` returns; ended early when the client goes, which nobody else would notice before the answer.

    Raises:
        ApiError: 499, the client has gone.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise client_gone()
    finally:
        task.cancel()
        gone.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def preceded(first: str | None, rest: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """A first item that was taken already, and the others."""
    async with aclosing(rest):
        if first is not None:
            yield first
        async for item in rest:
            yield item
