"""What stands at the connection itself: the port, and bounds of headers, in time and in size.

uvicorn has a limit for idle connections between two requests alone, and none for a request whose headers trickle in or
do not end: it keeps what has come of them.
Where Ray Serve's own proxy listens (KubeRay's services), it reads a body as fast as it comes and keeps it until the
gateway has taken it, also when that has had enough: there bodies have a bound besides.
"""

from __future__ import annotations

import asyncio
import errno
import json
import socket
import time
from typing import Any

import uvicorn
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from orchestrator.errors import ServeError
from orchestrator.serve.api.errors import ApiError
from orchestrator.serve.api.limits import Limits

HEADERS_S = 10.0
"""From the connection's beginning, or from a later request's first byte, to the end of the headers."""
HEAD_BYTES = 1 << 16
"""Of a request, besides its body: more is not kept."""
_FRAMING = 16
"""Bytes that a chunked body may take for each of its own: chunks of one byte take six."""
_KEPT_S = 90
"""An idle connection stays open for so long after a request."""
_BACKLOG = 2048
"""Connections that wait to be taken."""
_BIND_LIMIT_S = 15.0
_BIND_EVERY_S = 0.1
_LATE = ("408 Request Timeout", "The headers of your request took too long", "header_timeout")
_LONG = ("431 Request Header Fields Too Large", f"Your headers are larger than {HEAD_BYTES} bytes", "headers_too_large")


class PatientProtocol(AutoHTTPProtocol):  # type: ignore[misc,valid-type]
    """uvicorn's protocol with bounds for headers: `uvicorn.Config(http=PatientProtocol)`."""

    headers_s = HEADERS_S

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None
        self._room_bytes = HEAD_BYTES
        """What may still come of the newest request, besides its body."""
        self._is_new = False
        """It began in the bytes that were received last: how many of them are its own is not known."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        super().connection_made(transport)
        self._begin()

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        if self._deadline is None and not self._working():
            self._begin()
        self._is_new = False
        super().data_received(data)
        if not self._is_new:
            self._room_bytes -= len(data)
        if self._room_bytes < 0:
            self._refuse(*_LONG)
        if self._working() or self.transport.is_closing():
            self._end()

    def on_message_begin(self) -> None:
        """See httptools."""
        self._room_bytes, self._is_new = HEAD_BYTES, True
        super().on_message_begin()

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        self._room_bytes += _FRAMING * len(body)
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        """See uvicorn: what came is no HTTP."""
        self._refuse("400 Bad Request", msg, "no_http")

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._end()
        super().connection_lost(exc)

    def _working(self) -> bool:
        """Whether a request has all its headers, and not yet all its answer."""
        return self.cycle is not None and not self.cycle.response_complete

    def _begin(self) -> None:
        self._deadline = self.loop.call_later(self.headers_s, self._late)

    def _end(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        self._deadline = None
        if not self._working():
            self._refuse(*_LATE)

    def _refuse(self, status: str, message: str, code: str) -> None:
        """Answer what is no request yet, and close; in the middle of an answer to another one, just close."""
        if self.transport.is_closing():
            return
        if self._working():
            self.transport.abort()
            return
        body = json.dumps(ApiError(message, code=code).body()).encode()
        head = (
            f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {len(body)}"
        )
        self.transport.write(f"{head}\r\n\r\n".encode() + body)
        self.transport.close()


class Listener:
    """HTTP on a port, in the event loop that runs."""

    def __init__(self, serving: asyncio.Task[None]) -> None:
        """See `open`."""
        self._serving = serving

    @classmethod
    async def open(cls, app: ASGIApp, *, host: str, port: int) -> Listener:
        """Answer with an app there; connections are taken from the return of this on.

        Raises:
            ServeError: something else listens there, and goes on to.
        """
        listening = await _bound(host, port)
        config = uvicorn.Config(
            app,
            http=PatientProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEPT_S,
        )
        return cls(asyncio.create_task(uvicorn.Server(config).serve(sockets=[listening])))

    @property
    def listens(self) -> bool:
        """Whether it still does."""
        return not self._serving.done()


async def _bound(host: str, port: int) -> socket.socket:
    """The port, for this process alone: limits of what is under way at once are counted in it.

    Whoever had it before may be on the way out.
    """
    ends_at = time.monotonic() + _BIND_LIMIT_S
    while True:
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
            listening.listen(_BACKLOG)
            return listening
        except OSError as error:
            listening.close()
            if error.errno != errno.EADDRINUSE or time.monotonic() > ends_at:
                raise ServeError(f"nothing can listen on port {port} of {host}: {error.strerror}") from error
        await asyncio.sleep(_BIND_EVERY_S)


class Bounded:
    """Hands on of a body what shows that it is too large, and forgets the rest: whoever reads it refuses it by then."""

    def __init__(self, app: ASGIApp, *, body_bytes: int) -> None:
        self._app, self._body_bytes = app, body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        handed_on = 0

        async def bounded() -> Message:
            nonlocal handed_on
            while True:
                message = await receive()
                if message["type"] != "http.request" or handed_on <= self._body_bytes or not message.get("more_body"):
                    handed_on += len(message.get("body", b""))
                    return message

        await self._app(scope, bounded, send)


def guard_listeners() -> list[Middleware]:
    """Give every uvicorn that starts in this process later the bounds for headers; returns the bound for bodies.

    Ray Serve builds its own uvicorn in its proxy, and calls the function that
    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names before that; it wants a list of middlewares in return.
    """
    from uvicorn import config

    config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{PatientProtocol.__name__}"
    return [Middleware(Bounded, body_bytes=Limits().body_bytes)]
