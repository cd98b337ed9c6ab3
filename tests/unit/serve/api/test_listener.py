"""A port of our own, with bounds for headers; and what is handed on of a body that is too large."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
from collections.abc import Iterable, Iterator
from http.client import BadStatusLine, HTTPResponse

import pytest
from api_fixtures import listening
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from orchestrator.errors import ServeError
from orchestrator.serve.api import listener
from orchestrator.serve.api.limits import Limits
from orchestrator.serve.api.listener import Bounded, Listener, PatientProtocol, guard_listeners

pytestmark = pytest.mark.anyio
PART = bytes(1000)
PIECE = 50_000
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


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Where an app answers with the length of the body that it read."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = await Request(scope, receive).body()
        await PlainTextResponse(str(len(body)))(scope, receive, send)

    with listening(app) as port:
        yield port


def answer_to(port: int, parts: Iterable[bytes]) -> tuple[int, str, bytes]:
    """Status, content type and body of what comes back to parts that are sent one after another."""
    with socket.create_connection((HOST, port), timeout=20) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(ConnectionError):  # it may be refused before all is sent
            for part in parts:
                client.sendall(part)
        answer = HTTPResponse(client)
        answer.begin()
        return answer.status, str(answer.headers["content-type"]), answer.read()


HEAD = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
TOO_LONG = {"message": "Your headers are larger than 65536 bytes", "code": "headers_too_large"}


@pytest.mark.parametrize("line", [b"a" * PIECE, b"x: " + b"a" * PIECE + b"\r\n"], ids=["one", "many"])
def test_headers_that_do_not_end_are_refused_by_their_size(port: int, line: bytes) -> None:
    endless = itertools.chain([HEAD, b"x: "], itertools.repeat(line, 2000))
    status, kind, body = answer_to(port, endless)
    assert (status, kind) == (431, "application/json")
    assert json.loads(body)["error"] == {**TOO_LONG, "type": "invalid_request_error", "param": None}


def test_headers_of_a_usual_size_and_a_body_in_the_smallest_chunks_are_taken(port: int) -> None:
    head = HEAD + b"x: " + b"a" * 50_000 + b"\r\ntransfer-encoding: chunked\r\n\r\n"
    chunks = [b"1\r\nb\r\n" * 10_000] * 10
    assert answer_to(port, [head, *chunks, b"0\r\n\r\n"])[::2] == (200, b"100000")


def test_what_follows_a_body_without_end_is_cut_off(port: int) -> None:
    head = HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\nb\r\n0\r\n"
    with pytest.raises((ConnectionError, BadStatusLine)):  # in the middle of a request nothing can be said
        answer_to(port, itertools.chain([head], itertools.repeat(b"x: " + b"a" * PIECE + b"\r\n", 2000)))


def test_what_is_no_http_is_told_so_as_all_else_is(port: int) -> None:
    status, kind, body = answer_to(port, [b"what is this?\r\n\r\n"])
    assert (status, kind, json.loads(body)["error"]["code"]) == (400, "application/json", "no_http")
