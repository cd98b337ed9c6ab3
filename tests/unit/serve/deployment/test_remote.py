"""A request whose replica dies goes to another one, as long as its client has been told nothing."""

from __future__ import annotations

import asyncio
from asyncio import CancelledError
from collections.abc import AsyncIterator
from typing import Any

import pytest
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

from orchestrator.serve.deployment.pace import SIGN, Whole
from orchestrator.serve.deployment.remote import RemoteEngine
from orchestrator.serve.engine.protocol import EngineBusyError, EngineError, Piece, Sampling

pytestmark = pytest.mark.anyio
DEATH = RayActorError()


class Call:
    """What Ray Serve gives for a call that streams."""

    def __init__(self, items: list[Piece | BaseException | asyncio.Event]) -> None:
        self._items = items
        self.cancelled = False

    async def __aiter__(self) -> AsyncIterator[Piece]:
        for item in self._items:
            if isinstance(item, asyncio.Event):
                await item.wait()
            elif isinstance(item, BaseException) and not isinstance(item, EngineError):
                raise item
            else:
                yield item  # type: ignore[misc]  # an EngineError is sent as an item

    def cancel(self) -> None:
        """Ray's own raises once more what a call failed with that never came to a replica."""
        self.cancelled = True
        for item in self._items:
            if isinstance(item, BackPressureError):
                raise item


class Replicas:
    """Each call gets the next of these answers."""

    def __init__(self, *answers: list[Piece | BaseException | asyncio.Event]) -> None:
        self.calls = [Call(items) for items in answers]
        self._left = iter(self.calls)

    def options(self, **_: Any) -> Replicas:
        return self

    def remote(self, *_: Any) -> Call:
        return next(self._left)


async def said(replicas: Replicas, *, in_pieces: bool) -> list[Piece]:
    return [piece async for piece in RemoteEngine(replicas).generate([1], Sampling(max_tokens=9, in_pieces=in_pieces))]


async def test_a_whole_answer_is_retried_though_it_had_begun() -> None:
    replicas = Replicas([SIGN, DEATH], [SIGN, Whole("abc", 3, "stop")])
    assert [piece.text for piece in await said(replicas, in_pieces=False) if piece != SIGN] == ["abc"]
    assert [call.cancelled for call in replicas.calls] == [True, False]


async def test_a_stream_is_retried_only_before_its_first_piece() -> None:
    assert await said(Replicas([DEATH], [Piece("a", 1, "stop")]), in_pieces=True) == [Piece("a", 1, "stop")]
    with pytest.raises(EngineError, match="has died"):
        await said(Replicas([Piece("a", 1), DEATH], [Piece("a", 1, "stop")]), in_pieces=True)


async def test_the_engines_own_failure_is_not_retried() -> None:
    with pytest.raises(EngineError, match="no number"):
        await said(Replicas([EngineError("no number")], [Piece("a", 1, "stop")]), in_pieces=False)


async def test_what_else_a_replica_raises_is_the_engines_failure_without_its_words() -> None:
    with pytest.raises(EngineError, match=r"^no replica made this completion: ValueError$"):
        await said(Replicas([ValueError("a prompt")], [Piece("a", 1, "stop")]), in_pieces=False)


async def test_a_cancellation_that_a_replica_sends_is_its_end_and_no_end_of_ours() -> None:
    assert await said(Replicas([CancelledError()], [Piece("a", 1, "stop")]), in_pieces=True) == [Piece("a", 1, "stop")]


async def test_one_that_was_asked_for_here_is_followed() -> None:
    replicas = Replicas([asyncio.Event()], [Piece("a", 1, "stop")])
    asking = asyncio.create_task(said(replicas, in_pieces=True))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(CancelledError):
        await asking
    assert [call.cancelled for call in replicas.calls] == [True, False]


@pytest.mark.parametrize("in_pieces", [False, True])
async def test_too_many_that_wait_are_told_so(in_pieces: bool) -> None:
    refused = BackPressureError(num_queued_requests=4, max_queued_requests=4)
    with pytest.raises(EngineBusyError, match="too many requests wait"):
        await said(Replicas([refused]), in_pieces=in_pieces)
