"""What one request, one key and all of them together may take of the service. No torch, no Ray."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import anyio
from fastapi import Request
from starlette.requests import ClientDisconnect

from orchestrator.serve.api.errors import ApiError

_DRAINED_BYTES = 16 << 20
_DRAINED_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of the API. Those of a key (requests and tokens a minute, budget) are the key's own."""

    body_bytes: int = 4 << 20
    """Room for 128 prompts of several thousand tokens."""
    body_s: float = 30.0
    """From the end of the headers to the end of the body."""
    total_s: float | None = 600.0
    """From the first piece that is asked of the engine to the last; None: no bound."""
    requests_per_key: int = 64
    """Under way at once, streams among them."""
    requests: int = 1024
    """Under way at once, of all keys."""
    buffered_bytes: int = 128 << 20
    """Bodies being read at once, of all keys."""


@dataclass
class Bodies:
    """Reads bodies, and knows how much of them is in memory."""

    limits: Limits = field(default_factory=Limits)
    _held_bytes: int = 0

    async def read(self, request: Request) -> bytes:
        """The body, refused as soon as it is too large or too slow.

        Raises:
            ApiError: 413 too large, 408 too slow, 429 too many of them at once, 499 the client has gone.
        """
        limits = self.limits
        said = request.headers.get("content-length", "")
        if said.isascii() and said.isdigit() and int(said[:18]) > limits.body_bytes:
            if "expect" not in request.headers:  # who does waits for a word before anything is sent
                await _drain(request.stream())
            raise self._too_large()
        try:
            return await asyncio.wait_for(self._collect(request), limits.body_s)
        except asyncio.TimeoutError:
            raise ApiError(
                f"The body of your request was not there after {limits.body_s:g} s",
                status=408,
                code="body_timeout",
                headers={"connection": "close"},
            ) from None
        except ClientDisconnect:
            raise client_gone() from None

    async def _collect(self, request: Request) -> bytes:
        body = bytearray()
        held = 0
        chunks = request.stream()
        try:
            async for chunk in chunks:
                held += len(chunk)
                self._held_bytes += len(chunk)
                if held > self.limits.body_bytes:
                    break
                if self._held_bytes > self.limits.buffered_bytes:
                    raise _busy("The service is reading too many large requests")
                body += chunk
            else:
                return bytes(body)
        finally:
            self._held_bytes -= held
        await _drain(chunks)
        raise self._too_large()

    def _too_large(self) -> ApiError:
        return ApiError(
            f"The body of your request is larger than {self.limits.body_bytes} bytes",
            status=413,
            code="body_too_large",
            headers={"connection": "close"},
        )


async def _drain(chunks: AsyncGenerator[bytes, None]) -> None:
    """Take some more of a body that is refused, and forget it.

    A connection that is closed with bytes unread is reset: the client, or a proxy before it, may then never see why.
    """
    left = _DRAINED_BYTES
    with anyio.move_on_after(_DRAINED_S), suppress(ClientDisconnect):
        async for chunk in chunks:
            left -= len(chunk)
            if left < 0:
                return


class Slots:
    """Counts what is under way."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._by_key: Counter[str | None] = Counter()

    @contextmanager
    def hold(self, key_id: str | None) -> Iterator[None]:
        """Room for one more request of this key, for as long as it is worked on.

        Raises:
            ApiError: 429.
        """
        if self._by_key[key_id] >= self._limits.requests_per_key:
            raise _busy(f"This key has {self._limits.requests_per_key} requests under way; no more are allowed at once")
        if self._by_key.total() >= self._limits.requests:
            raise _busy("The service has too many requests under way")
        self._by_key[key_id] += 1
        try:
            yield
        finally:
            self._by_key[key_id] -= 1
            if not self._by_key[key_id]:
                del self._by_key[key_id]


def _busy(message: str) -> ApiError:
    return ApiError(message, status=429, code="too_many_requests", headers={"retry-after": "1", "connection": "close"})


def client_gone() -> ApiError:
    """499, as nginx has it: for the log alone, for nobody reads the answer."""
    return ApiError("The client has gone", status=499, code="client_gone")
