"""What stands before every route: a request id, one line in the log, a key, and a place among those under way.

Pure ASGI: Starlette's own base class for this would put a queue and a task between a stream and its client.
"""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from typing import Any

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.serve.api.desk import as_api_error
from orchestrator.serve.api.errors import ApiError
from orchestrator.serve.api.front import Front
from orchestrator.serve.api.limits import Slots

OPEN_PATHS = ("/healthz",)
"""All else asks for a key, once there is one."""
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_access = logging.getLogger("slipway.access")


class Logged:
    """Gives each request an id, in its answer's x-request-id, and a JSON line in the log `slipway.access`.

    The line has neither texts nor keys, and of the path only what a route of ours has written.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        told: dict[str, Any] = {"id": request_id, "method": scope["method"][:16]}
        scope.setdefault("state", {})["log"] = told
        started = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
                told["status"] = message["status"]
                told["first_byte_ms"] = round((time.perf_counter() - started) * 1e3, 3)
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:  # noqa: BLE001 - a bug's answer is ours to give
            # Servers write an error's words into their log, and these may hold what somebody asked.
            answer = as_api_error(error)
            if "status" in told:
                raise ConnectionAbortedError("a request failed after its answer had begun") from None
            await JSONResponse(answer.body(), answer.status)(scope, receive, send_with_id)
        finally:
            route = scope.get("route")
            told["path"] = route.path if route is not None else None
            told["ms"] = round((time.perf_counter() - started) * 1e3, 3)
            _access.info("%s", json.dumps(told))


class Closed:
    """Asks who it is, and holds a place for the request until its last byte is sent."""

    def __init__(self, app: ASGIApp, front: Front, slots: Slots) -> None:
        self._app, self._front, self._slots = app, front, slots

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)  # no route takes a websocket
            return
        headers = Headers(scope=scope)
        try:
            _refuse_other_sites(scope, headers)
            caller = await self._front.authenticate(headers.get("authorization"))
            if caller.key_id is None:
                _refuse_other_names(headers)
            scope["state"]["caller"] = caller
            scope["state"]["log"]["key"] = caller.key_id
            with self._slots.hold(caller.key_id):
                await self._app(scope, receive, send)
        except ApiError as error:  # of those above: the app answers its own
            await _refusal(error, headers)(scope, receive, send)


def _refuse_other_sites(scope: Scope, headers: Headers) -> None:
    """A browser sends the key that it was given for our page along with what any other page asks of us."""
    if scope["method"] not in ("GET", "HEAD") and headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        raise ApiError("Pages of other sites may not use this service", status=403, code="cross_site")


def _refuse_other_names(headers: Headers) -> None:
    """Without keys we are here for this machine alone: a page may have pointed a name of its own at our address."""
    name = headers.get("host", "").lower()
    if name.rsplit(":", 1)[0] not in _LOOPBACK and name not in _LOOPBACK:
        raise ApiError(
            "Without keys this service answers on 127.0.0.1 and localhost alone: `slipway keys create` makes one",
            status=403,
            code="no_keys",
        )


def _refusal(error: ApiError, headers: Headers) -> JSONResponse:
    if error.status == 401:
        # A browser that wants a page asks its user; a script would only be held up by that.
        page = "text/html" in headers.get("accept", "")
        scheme = 'Basic realm="slipway", charset="UTF-8"' if page else 'Bearer realm="slipway"'
        error.headers = {k: v for k, v in error.headers.items() if k.lower() != "www-authenticate"}
        error.headers["www-authenticate"] = scheme
    return JSONResponse(error.body(), error.status, error.headers)
