"""Bodies that are too large, too slow or too many, and places for requests under way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
from fastapi import Request

from orchestrator.serve.api import limits
from orchestrator.serve.api.errors import ApiError
from orchestrator.serve.api.limits import Bodies, Limits, Slots

pytestmark = pytest.mark.anyio


def request(*chunks: bytes, length: int | None = None, pause_s: float = 0.0, ends: bool = True) -> Request:
    """A request whose body comes in chunks, as ASGI servers hand it over."""
    left = list(chunks)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(pause_s)
        if not left:
            if ends:
                return {"type": "http.disconnect"}
            await asyncio.Event().wait()
        chunk = left.pop(0)
        return {"type": "http.request", "body": chunk, "more_body": bool(left) or not ends}

    headers = [] if length is None else [(b"content-length", str(length).encode())]
    return Request({"type": "http", "method": "POST", "headers": headers}, receive)


async def refused(read: Callable[[], Any]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await read()
    return caught.value


async def test_a_body_comes_whole() -> None:
    assert await Bodies().read(request(b"ab", b"", b"c")) == b"abc"


async def test_a_body_at_the_limit_is_read_and_one_byte_more_is_not() -> None:
    bodies = Bodies(Limits(body_bytes=4))
    assert await bodies.read(request(b"ab", b"cd")) == b"abcd"
    error = await refused(lambda: bodies.read(request(b"ab", b"cde")))
    assert (error.status, error.code) == (413, "body_too_large")


async def test_a_length_that_is_too_large_is_refused_without_reading_on_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "_DRAINED_S", 0.05)
    endless = request(length=300 << 20, ends=False)
    assert (await refused(lambda: Bodies().read(endless))).status == 413
    assert (await refused(lambda: Bodies().read(request(length=10**40, ends=False)))).status == 413


async def test_what_is_refused_is_taken_to_its_end_so_that_the_answer_is_seen() -> None:
    bodies, chunks = Bodies(Limits(body_bytes=4)), [b"x" * 10] * 50
    sending = request(*chunks, length=500)
    assert (await refused(lambda: bodies.read(sending))).status == 413
    assert (await sending.receive())["type"] == "http.disconnect"


async def test_a_length_that_lies_does_not_help() -> None:
    bodies = Bodies(Limits(body_bytes=4))
    assert (await refused(lambda: bodies.read(request(b"abcde", length=1)))).status == 413


async def test_a_body_that_trickles_is_a_408() -> None:
    bodies = Bodies(Limits(body_s=0.05))
    error = await refused(lambda: bodies.read(request(*[b"x"] * 1000, pause_s=0.01)))
    assert (error.status, error.headers["connection"]) == (408, "close")


async def test_a_client_that_goes_within_its_body_is_a_499() -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    gone = Request({"type": "http", "method": "POST", "headers": []}, receive)
    assert (await refused(lambda: Bodies().read(gone))).status == 499


async def test_bodies_together_are_bounded_and_the_room_comes_back() -> None:
    bodies = Bodies(Limits(buffered_bytes=10, body_s=5))
    waiting = asyncio.create_task(bodies.read(request(b"12345678", ends=False)))
    await asyncio.sleep(0.01)
    error = await refused(lambda: bodies.read(request(b"abc")))
    assert (error.status, error.headers["retry-after"]) == (429, "1")
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert await bodies.read(request(b"1234567890")) == b"1234567890"


def test_a_key_has_so_many_places_and_gets_them_back() -> None:
    slots = Slots(Limits(requests_per_key=2, requests=3))
    with ExitStack() as held:
        for key in ("a", "a", "b"):
            held.enter_context(slots.hold(key))
        with pytest.raises(ApiError, match="This key has 2 requests under way"), slots.hold("a"):
            pass
        with pytest.raises(ApiError, match="The service has too many"), slots.hold("b"):
            pass
    for _ in range(5):
        with slots.hold("a"), slots.hold("a"):
            pass


def test_a_place_is_given_back_by_a_request_that_fails() -> None:
    slots = Slots(Limits(requests_per_key=1))
    with pytest.raises(KeyError), slots.hold("a"):
        raise KeyError
    with slots.hold("a"):
        pass
