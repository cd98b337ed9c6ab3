"""What is handed on of a body that is too large."""

from __future__ import annotations

import pytest
from starlette.types import Message, Receive, Scope, Send

from orchestrator.serve.api.limits import Limits
from orchestrator.serve.api.listener import Bounded, guard_listeners

pytestmark = pytest.mark.anyio
PART = bytes(1000)


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
