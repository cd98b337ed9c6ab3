"""Streams share a replica's messages; nothing is lost, reordered or late at the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator

import pytest

from orchestrator.serve.deployment.pace import SIGN, Pacer, Whole, whole
from orchestrator.serve.engine.protocol import EngineError, Piece

pytestmark = pytest.mark.anyio


async def tokens(count: int, every_s: float, *, fails: bool = False) -> AsyncGenerator[Piece, None]:
    for number in range(count):
        await asyncio.sleep(every_s)
        yield Piece(f"{number} ", 1, "length" if number == count - 1 and not fails else None)
    if fails:
        raise EngineError("broken")


async def test_pieces_are_joined_and_all_there() -> None:
    pacer = Pacer(messages_per_s=50.0)
    began = time.monotonic()
    pieces = [piece async for piece in pacer.paced(tokens(60, 0.001))]
    assert "".join(piece.text for piece in pieces) == "".join(f"{n} " for n in range(60))
    assert sum(piece.tokens for piece in pieces) == 60
    assert [piece.finish_reason for piece in pieces][-1] == "length"
    assert pieces[0].tokens == 1  # the first at once
    assert len(pieces) <= 2 + (time.monotonic() - began) * 50.0


async def test_a_stream_that_is_slower_than_its_share_is_left_as_it_is() -> None:
    pieces = [piece async for piece in Pacer(messages_per_s=1000.0).paced(tokens(5, 0.02))]
    assert [piece.tokens for piece in pieces] == [1] * 5


async def test_the_end_does_not_wait_for_its_turn() -> None:
    began = time.monotonic()
    pieces = [piece async for piece in Pacer(messages_per_s=0.1).paced(tokens(3, 0.001))]
    assert sum(piece.tokens for piece in pieces) == 3
    assert time.monotonic() - began < 2.0


async def test_a_failure_comes_after_what_was_made() -> None:
    texts = []

    async def read() -> None:
        async for piece in Pacer().paced(tokens(3, 0.001, fails=True)):
            texts.append(piece.text)

    with pytest.raises(EngineError, match="broken"):
        await read()
    assert "".join(texts) == "0 1 2 "


async def test_whoever_stops_reading_ends_the_work() -> None:
    closed = asyncio.Event()

    async def endless() -> AsyncGenerator[Piece, None]:
        try:
            while True:
                await asyncio.sleep(0.001)
                yield Piece("a", 1)
        finally:
            closed.set()

    pieces = Pacer().paced(endless())
    await anext(pieces)
    await pieces.aclose()
    assert closed.is_set()


async def test_a_whole_answer_is_one_message_which_knows_its_times() -> None:
    (piece,) = [piece async for piece in whole(tokens(20, 0.005))]
    assert isinstance(piece, Whole)
    assert piece.text == "".join(f"{n} " for n in range(20))
    assert (piece.tokens, piece.finish_reason) == (20, "length")
    assert 19 * 0.005 <= piece.after_first_s < 2.0


async def test_a_whole_answer_that_takes_long_gives_a_sign_once_it_has_begun() -> None:
    pieces = [piece async for piece in whole(tokens(10, 0.03), sign_s=0.02)]
    assert pieces[0] == SIGN
    assert [piece.tokens for piece in pieces] == [0, 10]


async def test_a_whole_answer_fails_without_a_piece_and_ends_with_its_reader() -> None:
    with pytest.raises(EngineError, match="broken"):
        await anext(whole(tokens(3, 0.001, fails=True)))
    closed = asyncio.Event()

    async def endless() -> AsyncGenerator[Piece, None]:
        try:
            while True:
                await asyncio.sleep(0.001)
                yield Piece("a", 1)
        finally:
            closed.set()

    pieces = whole(endless(), sign_s=0.01)
    assert await anext(pieces) == SIGN
    await pieces.aclose()
    assert closed.is_set()
