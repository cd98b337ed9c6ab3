"""A port of our own, with a deadline for headers; and what is handed on of a body that is too large."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from orchestrator.errors import ServeError
from orchestrator.serve.api import listener
from orchestrator.serve.api.limits import Limits
from orchestrator.serve.api.listener import Bounded, Listener, PatientProtocol, guard_listeners

pytestmark = pytest.mark.anyio
PART = bytes(1000)
HOST = "127.0.0.1"


@pytest.fixture
def taken() -> Iterator[socket.socket]:
    """A port on which something else listens."""
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        yield taken


async def said(port: int, words: bytes) -> bytes:
    """All that comes back."""
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(words)
    answer = await reader.read()
    writer.close()
    return answer


async def test_it_answers_on_a_port_that_gets_free_and_closes_what_sends_no_headers(
    taken: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PatientProtocol, "headers_s", 0.3)
    port = taken.getsockname()[1]
    opening = asyncio.create_task(Listener.open(PlainTextResponse("here"), host=HOST, port=port))
    await asyncio.sleep(0.15)
    assert not opening.done()
    taken.close()
    assert (await opening).listens
    head, _, body = (await said(port, b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).partition(b"\r\n\r\n")
    assert (head.split(b"\r\n")[0], body) == (b"HTTP/1.1 200 OK", b"here")
    assert b"server:" not in head
    assert b" 408 " in (await said(port, b"GET / HTTP/1.1\r\nhost: ")).split(b"\r\n")[0]


async def test_a_port_that_stays_taken_is_told(taken: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "_BIND_LIMIT_S", 0.2)
    port = taken.getsockname()[1]
    with pytest.raises(ServeError, match=f"nothing can listen on port {port} of {HOST}: Address already in use"):
        await Listener.open(PlainTextResponse("here"), host=HOST, port=port)


async def handed_on(parts: int, *, body_bytes: int) -> tuple[int, int, str]:
    """Of a body of so many parts, then a disconnect: the bytes and the messages that come through, and the last one."""
    messages: list[Message] = [{"type": "http.request", "body": PART, "more_body": i < parts - 1} for i in range(parts)]
    messages.append({"type": "http.disconnect"})
    coming = iter(messages)
    seen: list[Message] = []

    async def receive() -> Message:
        return next(coming)

    async def send(message: Message) -> None:
        raise AssertionError(message)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while not seen or seen[-1]["type"] != "http.disconnect":
            seen.append(await receive())

    await Bounded(app, body_bytes=body_bytes)({"type": "http"}, receive, send)
    return sum(len(message.get("body", b"")) for message in seen), len(seen) - 1, str(seen[-2].get("more_body"))


async def test_a_body_within_the_bound_comes_whole() -> None:
    assert await handed_on(4, body_bytes=4000) == (4000, 4, "False")


async def test_of_a_larger_one_comes_enough_to_refuse_it_and_its_end() -> None:
    assert await handed_on(500, body_bytes=4000) == (6000, 6, "False")


def test_the_proxy_has_the_bound_of_the_routes() -> None:
    (middleware,) = guard_listeners()
    assert middleware.kwargs == {"body_bytes": Limits().body_bytes}
