"""What the gateway remembers of requests, with a clock that stands still until it is told."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from collections.abc import Sequence as Ids

import pytest

from orchestrator.serve.deployment.observe import ObservedEngine, Observer, Request
from orchestrator.serve.deployment.pace import SIGN, Whole
from orchestrator.serve.engine.protocol import EngineBusyError, EngineError, Piece, Sampling

pytestmark = pytest.mark.anyio


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Steady:
    """An engine that makes a token every 10 ms after a first one at 50 ms; then fails, if told so."""

    def __init__(self, clock: Clock, *, fails: bool = False) -> None:
        self._clock = clock
        self._fails = fails

    async def generate(self, prompt_T: Ids[int], sampling: Sampling) -> AsyncGenerator[Piece, None]:
        self._clock.now += 0.04
        for number in range(sampling.max_tokens):
            self._clock.now += 0.01
            if self._fails and number == 1:
                raise EngineError("no more")
            yield Piece("a", 1, "length" if number == sampling.max_tokens - 1 else None)

    async def check(self, *, timeout_s: float) -> None:
        return


async def used(engine: ObservedEngine, tokens: int) -> int:
    return len([piece async for piece in engine.generate([1], Sampling(max_tokens=tokens))])


async def test_times_and_errors_are_those_of_the_last_seconds() -> None:
    clock, ended = Clock(), list[Request]()
    observer = Observer(clock, ended.append)
    engine = ObservedEngine(Steady(clock), observer)
    assert await used(engine, 11) == 11
    seen = observer.seen(60.0)
    assert (seen.requests, seen.errors, seen.silent_s) == (1, 0, 0.0)
    assert seen.first_token_s == pytest.approx(0.05)
    assert seen.token_s == pytest.approx(0.01)
    with pytest.raises(EngineError):
        await used(ObservedEngine(Steady(clock, fails=True), observer), 5)
    assert (observer.seen(60.0).requests, observer.seen(60.0).errors) == (2, 1)
    assert [request.failed for request in ended] == [False, True]
    clock.now += 61.0
    assert observer.seen(60.0).requests == 0


async def test_a_client_that_goes_is_no_error_and_a_silent_request_is_seen() -> None:
    clock = Clock()
    observer = Observer(clock)
    pieces = ObservedEngine(Steady(clock), observer).generate([1], Sampling(max_tokens=9))
    await anext(pieces)
    assert observer.under_way == 1
    await pieces.aclose()
    assert (observer.under_way, observer.seen(9.0).errors, observer.seen(9.0).requests) == (0, 0, 1)
    waiting = observer.begin()
    clock.now += 7.0
    assert observer.seen(1.0).silent_s == pytest.approx(7.0)
    observer.made(waiting, 1)
    assert observer.seen(1.0).silent_s == 0.0


class Late(Steady):
    """Tells eleven tokens, 10 ms apart after a first one at 50 ms, at their end; before it a sign of life."""

    async def generate(self, prompt_T: Ids[int], sampling: Sampling) -> AsyncGenerator[Piece, None]:
        self._clock.now += 0.1
        yield SIGN
        self._clock.now += 0.05
        yield Whole("abc", 11, "length", after_first_s=0.1)


async def test_a_whole_answer_has_the_times_of_its_tokens() -> None:
    clock = Clock()
    observer = Observer(clock)
    pieces = ObservedEngine(Late(clock), observer).generate([1], Sampling(max_tokens=11, in_pieces=False))
    assert (await anext(pieces)).text == "abc"  # the sign is not for the client
    assert [piece async for piece in pieces] == []
    seen = observer.seen(60.0)
    assert seen.first_token_s == pytest.approx(0.05)
    assert seen.token_s == pytest.approx(0.01)


async def test_no_more_than_may_be_are_under_way_and_refusals_are_no_failures() -> None:
    clock, ended = Clock(), list[Request]()
    observer = Observer(clock, ended.append, most=1)
    engine = ObservedEngine(Steady(clock), observer)
    pieces = engine.generate([1], Sampling(max_tokens=5))
    await anext(pieces)
    assert observer.full
    with pytest.raises(EngineBusyError):
        await used(engine, 1)
    await pieces.aclose()
    assert await used(engine, 3) == 3
    assert (observer.under_way, observer.seen(60.0).errors, len(ended)) == (0, 0, 2)
