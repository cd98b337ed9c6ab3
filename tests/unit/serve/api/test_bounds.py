"""The API on a port: the official client, and clients that are slow, huge, silent or gone."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import openai
import pytest

from orchestrator.serve.api.answer import Served
from orchestrator.serve.api.bounds import beside
from orchestrator.serve.api.limits import Limits
from orchestrator.serve.api.models import OneModel, OpenFront
from orchestrator.serve.api.routes import build_app
from orchestrator.serve.engine.protocol import Piece

TURN: Any = [{"role": "user", "content": "hi"}]
LIMITS = Limits(body_s=0.3)
HEADERS_S = 0.3


@pytest.fixture(scope="module")
def port(served: Served, on_a_port: Any) -> Iterator[int]:
    with on_a_port(build_app(OneModel(served), OpenFront(), limits=LIMITS), headers_s=HEADERS_S) as port:
        yield port


def client(port: int, key: str = "right") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0)


def test_the_official_client(port: int) -> None:
    with client(port) as api:
        assert [model.id for model in api.models.list()] == ["tiny"]
        text = api.completions.create(model="tiny", prompt="def ", max_tokens=9, seed=1, logprobs=2)
        assert text.choices[0].logprobs is not None
        assert text.usage is not None
        pieces = api.completions.create(model="tiny", prompt="def ", max_tokens=9, seed=1, stream=True)
        assert "".join(chunk.choices[0].text for chunk in pieces) == text.choices[0].text
        with pytest.raises(openai.NotFoundError):
            api.completions.create(model="gpt-4", prompt="x")
        with pytest.raises(openai.BadRequestError, match="temperature"):
            api.completions.create(model="tiny", prompt="x", temperature=9)
        extra = api.completions.create(
            model="tiny",
            prompt="def ",
            max_tokens=5,
            seed=1,
            presence_penalty=0.5,
            logit_bias={"5": -100},
            extra_body={"top_k": 3, "min_p": 0.01, "repetition_penalty": 1.1, "ignore_eos": True},
        )
        assert extra.usage is not None
        assert extra.usage.completion_tokens == 5


def test_the_official_client_chats(port: int) -> None:
    with client(port) as api:
        asked: Any = {"model": "tiny", "messages": TURN, "max_completion_tokens": 9, "seed": 1}
        answer = api.chat.completions.create(**asked, logprobs=True, top_logprobs=3)
        told = answer.choices[0].logprobs
        assert told is not None
        assert told.content is not None
        assert len(told.content[0].top_logprobs) == 3
        chunks = list(api.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
        assert chunks[0].choices[0].delta.role == "assistant"
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == answer.choices[0].message.content
        assert chunks[-1].usage == answer.usage
        with api.chat.completions.stream(**asked) as stream:
            assert "".join(event.delta for event in stream if event.type == "content.delta") == text


def test_the_official_asynchronous_client(port: int) -> None:
    async def ask() -> None:
        async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0) as api:
            asked: Any = {"model": "tiny", "messages": TURN, "max_tokens": 9, "seed": 1}
            whole = [api.chat.completions.create(**asked) for _ in range(4)]
            texts = [answer.choices[0].message.content for answer in await asyncio.gather(*whole)]
            stream = await api.chat.completions.create(**asked, stream=True)
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
            assert {*texts} == {"".join(pieces)}

    asyncio.run(ask())


def test_a_wrong_key_is_an_authentication_error(served: Served, front: Any, on_a_port: Any) -> None:
    with on_a_port(build_app(OneModel(served), front)) as port:
        with client(port, "wrong") as api, pytest.raises(openai.AuthenticationError):
            api.models.list()
        with client(port) as api:
            assert [model.id for model in api.models.list()] == ["tiny"]


def connection(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=5)


def answer_of(open_socket: socket.socket) -> tuple[int, dict[str, Any]]:
    answer = http.client.HTTPResponse(open_socket)
    answer.begin()
    return answer.status, json.loads(answer.read())["error"]


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


def test_300_megabytes_are_refused_at_their_first_byte(port: int) -> None:
    with connection(port) as sending:
        sending.sendall(HEAD + b"content-length: 314572800\r\n\r\n" + b"x" * 1000)
        status, error = answer_of(sending)
        assert (status, error["code"]) == (413, "body_too_large")


def test_chunks_without_end_are_refused_at_the_limit(port: int) -> None:
    sent, chunk = 0, b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    with connection(port) as sending:
        sending.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        try:
            while sent < 300 << 20:
                sending.sendall(chunk)
                sent += len(chunk)
        except OSError:
            pass
    assert sent < 32 << 20


def test_a_body_that_trickles_is_ended(port: int) -> None:
    began = time.monotonic()
    with connection(port) as sending:
        sending.sendall(HEAD + b"content-length: 1000\r\n\r\n{")
        assert answer_of(sending)[0] == 408
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("start", [b"", b"POST /v1/compl", HEAD])
def test_headers_that_trickle_are_ended(port: int, start: bytes) -> None:
    began = time.monotonic()
    with connection(port) as sending:
        sending.sendall(start)
        status, error = answer_of(sending)
        assert (status, error["code"]) == (408, "header_timeout")
        assert sending.recv(1) == b""
    assert HEADERS_S * 0.9 < time.monotonic() - began < 3


def test_headers_of_a_second_request_that_trickle_are_ended_too(port: int) -> None:
    with connection(port) as sending:
        for _ in range(2):
            sending.sendall(b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n")
            answer = http.client.HTTPResponse(sending)
            answer.begin()
            answer.read()
        sending.sendall(b"GET /v1/mo")
        assert answer_of(sending)[0] == 408


def test_idle_connections_hold_up_nobody_and_go(port: int) -> None:
    with ExitStack() as open_ones:
        idle = [open_ones.enter_context(connection(port)) for _ in range(200)]
        with client(port) as api:
            assert api.completions.create(model="tiny", prompt="x", max_tokens=2).choices
        assert all(b"408" in each.recv(4096) for each in idle)


def test_json_10000_deep_and_a_million_tokens_are_400(port: int) -> None:
    for body in (
        b'{"model": "tiny", "prompt": ' + b"[" * 10_000,
        b'{"model": "tiny", "prompt": "' + b"a " * 10**6 + b'"}',
    ):
        asking = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        asking.request("POST", "/v1/completions", body)
        assert asking.getresponse().status == 400
        asking.close()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_ends_the_work(
    scripted: Callable[..., Served], front: Any, on_a_port: Any, stream: bool
) -> None:
    model = scripted(Piece("a", 2), *[0.02, Piece("", 0)] * 500)
    body = json.dumps({"model": "tiny", "prompt": "x", "stream": stream, "n": 2}).encode()
    with on_a_port(build_app(OneModel(model), front)) as port:
        with connection(port) as sending:
            sending.sendall(HEAD + b"authorization: Bearer right\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
            until(lambda: front.admissions and len(model.engine.asked) == 2)  # type: ignore[attr-defined]
            time.sleep(0.1)
        until(lambda: front.admissions[0].settled)
    (settled,) = front.admissions[0].settled
    assert (settled["completion_tokens"], settled["answered"]) == (4, None)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("read", "at_once"),
    [(["ship"], True), ([[1] * 1900], True), (["ship " * 1000], False), ([[1] * 5000], False), (["a"] * 100, False)],
)
async def test_only_what_is_long_is_read_in_a_thread(read: list[str] | list[list[int]], at_once: bool) -> None:
    thread = await beside(threading.get_ident, read)
    assert (thread == threading.get_ident()) == at_once
