"""The compute thread: fair turns, cancellation, failures that stay with their request."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from orchestrator.export.prove import ProvenModel
from orchestrator.serve.engine.interleaved import Engine
from orchestrator.serve.engine.protocol import EngineError, Piece, Sampling
from orchestrator.serve.engine.sequence import Sequence

pytestmark = pytest.mark.anyio

LONG = Sampling(max_tokens=60, seed=1)
SHORT = Sampling(max_tokens=4, seed=2)


@pytest.fixture
def engine(proven: ProvenModel) -> Iterator[Engine]:
    engine = Engine(proven, threads=1)
    yield engine
    engine.close()


async def collect(engine: Engine, prompt: list[int], sampling: Sampling) -> str:
    return "".join([piece.text async for piece in engine.generate(prompt, sampling)])


def alone(proven: ProvenModel, prompt: list[int], sampling: Sampling) -> str:
    sequence, text = Sequence(proven, prompt, sampling), ""
    while True:
        piece = sequence.step()
        text += piece.text
        if piece.finish_reason is not None:
            return text


async def test_many_at_once_get_what_each_would_get_alone(engine: Engine, proven: ProvenModel) -> None:
    asked = [([10 + i, 20], Sampling(max_tokens=5 + 3 * i, seed=i)) for i in range(8)]
    got = await asyncio.gather(*(collect(engine, prompt, sampling) for prompt, sampling in asked))
    assert got == [alone(proven, prompt, sampling) for prompt, sampling in asked]


async def test_a_short_completion_does_not_wait_for_long_ones(engine: Engine) -> None:
    ended: list[str] = []

    async def run(name: str, sampling: Sampling) -> None:
        await collect(engine, [10, 20], sampling)
        ended.append(name)

    longs = [asyncio.create_task(run("long", LONG)) for _ in range(3)]
    await asyncio.sleep(0)
    await run("short", SHORT)
    await asyncio.gather(*longs)
    assert ended[0] == "short"


async def test_turns_are_taken_one_step_each(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[int] = []
    step = Sequence.step

    def watched(self: Sequence) -> Piece:
        turns.append(id(self))
        return step(self)

    monkeypatch.setattr(Sequence, "step", watched)
    await asyncio.gather(*(collect(engine, [10, 20], Sampling(max_tokens=20, seed=i)) for i in range(3)))
    both = turns[3:30]  # from when all three are in until none has ended
    assert all(len(set(both[i : i + 3])) == 3 for i in range(0, len(both) - 2, 3))


async def test_whoever_stops_reading_stops_the_work(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 0
    step = Sequence.step

    def counted(self: Sequence) -> Piece:
        nonlocal steps
        steps += 1
        time.sleep(0.005)
        return step(self)

    monkeypatch.setattr(Sequence, "step", counted)
    stream = engine.generate([10, 20], LONG)
    await anext(stream)
    await stream.aclose()
    at_cancel = steps
    await asyncio.sleep(0.1)
    assert steps <= at_cancel + 1


async def test_the_event_loop_is_free_meanwhile(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Sequence.step

    def slow(self: Sequence) -> Piece:
        time.sleep(0.05)
        return step(self)

    monkeypatch.setattr(Sequence, "step", slow)
    task = asyncio.create_task(collect(engine, [10, 20], Sampling(max_tokens=6, seed=0)))
    turns_of_the_loop = 0
    while not task.done():
        turns_of_the_loop += 1
        await asyncio.sleep(0)
    assert turns_of_the_loop > 100


async def test_a_failure_stays_with_its_request(engine: Engine, proven: ProvenModel) -> None:
    too_long = [10] * (proven.config.context + 1)
    with pytest.raises(EngineError, match="ValueError while generating"):
        await collect(engine, too_long, SHORT)
    assert await collect(engine, [10, 20], SHORT) == alone(proven, [10, 20], SHORT)


async def test_a_slow_reader_misses_no_logprob(engine: Engine, proven: ProvenModel) -> None:
    sampling = Sampling(max_tokens=20, seed=1, logprobs=1, of_prompt=True)
    stream = engine.generate([10, 20], sampling)
    pieces = [await anext(stream)]
    await asyncio.sleep(0.3)
    pieces += [piece async for piece in stream]
    sequence = Sequence(proven, [10, 20], sampling)
    every = [sequence.step()]
    while every[-1].finish_reason is None:
        every.append(sequence.step())
    assert len(pieces) < len(every)
    assert Piece.joined(pieces) == Piece.joined(every)


async def test_check_makes_a_token(engine: Engine) -> None:
    await engine.check(timeout_s=5)


async def test_check_notices_an_engine_that_does_not_move(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def stuck(self: Sequence) -> Piece:
        release.wait(10)
        return Piece("", 0, "length")

    monkeypatch.setattr(Sequence, "step", stuck)
    try:
        with pytest.raises(EngineError, match=r"no token in 0\.1 s"):
            await engine.check(timeout_s=0.1)
    finally:
        release.set()


async def test_a_closed_engine_says_so(proven: ProvenModel) -> None:
    engine = Engine(proven, threads=1)
    stream = engine.generate([10, 20], LONG)
    await anext(stream)
    engine.close()
    with pytest.raises(EngineError, match="shutting down"):
        async for _ in stream:
            pass
    with pytest.raises(EngineError, match="has ended"):
        await engine.check(timeout_s=1)
