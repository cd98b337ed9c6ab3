"""The engine's thread: what each client gets, cancellation, refusal, swaps, health and load."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from export_fixtures import tiny_export
from tokenizers import Tokenizer

from model.native import build as native
from orchestrator.errors import ServeError
from orchestrator.export.prove import ProvenModel, load_proven
from orchestrator.serve.engine.batch import Batch, Result
from orchestrator.serve.engine.batching import Engine
from orchestrator.serve.engine.protocol import EngineBusyError, EngineError, Piece, Sampling

pytestmark = pytest.mark.anyio

LONG = Sampling(max_tokens=60, seed=1, ignore_eos=True)
SHORT = Sampling(max_tokens=4, seed=2)
Run = Callable[[ProvenModel, list[int], Sampling], list[Piece]]


@pytest.fixture
def engine(proven: ProvenModel) -> Iterator[Engine]:
    engine = Engine(proven, threads=1)
    yield engine
    engine.close()


async def collect(engine: Engine, prompt: list[int], sampling: Sampling) -> Piece:
    return Piece.joined([piece async for piece in engine.generate(prompt, sampling)])


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], list[int]]:
    """Makes steps take longer; the number of completions that were in each is told."""

    def slow(seconds: float) -> list[int]:
        step, seen = Batch.step, list[int]()

        def watched(self: Batch) -> list[Result]:
            time.sleep(seconds)
            found = step(self)
            seen.append(len(found))
            return found

        monkeypatch.setattr(Batch, "step", watched)
        return seen

    return slow


async def test_many_at_once_get_what_each_would_get_alone(engine: Engine, proven: ProvenModel, run: Run) -> None:
    asked = [([10 + i, 20], Sampling(max_tokens=5 + 3 * i, seed=i)) for i in range(8)]
    got = await asyncio.gather(*(collect(engine, prompt, sampling) for prompt, sampling in asked))
    assert got == [Piece.joined(run(proven, prompt, sampling)) for prompt, sampling in asked]


async def test_a_short_completion_does_not_wait_for_long_ones(
    engine: Engine, slowly: Callable[[float], list[int]]
) -> None:
    slowly(0.002)
    ended: list[str] = []

    async def ask(name: str, sampling: Sampling) -> None:
        await collect(engine, [10, 20], sampling)
        ended.append(name)

    longs = [asyncio.create_task(ask("long", LONG)) for _ in range(3)]
    await asyncio.sleep(0)
    await ask("short", SHORT)
    await asyncio.gather(*longs)
    assert ended[0] == "short"


async def test_whoever_stops_reading_stops_the_work(engine: Engine, slowly: Callable[[float], list[int]]) -> None:
    seen = slowly(0.005)
    stream = engine.generate([10, 20], LONG)
    await anext(stream)
    await stream.aclose()
    made = sum(seen)
    await asyncio.sleep(0.1)
    assert sum(seen) <= made + 1
    assert engine.load().cache_tokens == 0


async def test_a_stop_text_stops_the_work(engine: Engine, slowly: Callable[[float], list[int]]) -> None:
    whole = await collect(engine, [10, 20], LONG)
    seen = slowly(0.005)
    stopped = await collect(engine, [10, 20], replace(LONG, stop=(whole.text[4:7],)))
    await asyncio.sleep(0.05)
    assert stopped.text == whole.text[: whole.text.index(whole.text[4:7])]
    assert stopped.tokens <= sum(seen) <= stopped.tokens + 2


async def test_the_event_loop_is_free_meanwhile(engine: Engine, slowly: Callable[[float], list[int]]) -> None:
    slowly(0.05)
    task = asyncio.create_task(collect(engine, [10, 20], Sampling(max_tokens=6, seed=0)))
    turns_of_the_loop = 0
    while not task.done():
        turns_of_the_loop += 1
        await asyncio.sleep(0)
    assert turns_of_the_loop > 100


async def test_a_failure_stays_with_its_request(engine: Engine, proven: ProvenModel) -> None:
    before = await collect(engine, [10, 20], SHORT)
    wrong = [[10] * (proven.config.context + 1), [10**6], []]
    found = await asyncio.gather(
        *(collect(engine, prompt, SHORT) for prompt in [*wrong, [10, 20]]), return_exceptions=True
    )
    assert [type(each) for each in found] == [EngineError] * 3 + [Piece]
    assert found[3] == before


async def test_a_slow_reader_misses_no_logprob(engine: Engine, proven: ProvenModel, run: Run) -> None:
    sampling = Sampling(max_tokens=20, seed=1, logprobs=1, of_prompt=True)
    stream = engine.generate([10, 20], sampling)
    pieces = [await anext(stream)]
    await asyncio.sleep(0.3)
    pieces += [piece async for piece in stream]
    every = run(proven, [10, 20], sampling)
    assert len(pieces) < len(every)
    ours, theirs = Piece.joined(pieces), Piece.joined(every)
    assert (ours.text, ours.tokens) == (theirs.text, theirs.tokens)
    for one, other in ((ours.logprobs, theirs.logprobs), (ours.prompt_logprobs[1:], theirs.prompt_logprobs[1:])):
        assert [each.token for each in one] == [each.token for each in other]
        assert [each.logprob for each in one] == pytest.approx([each.logprob for each in other], abs=1e-5)


async def test_whom_there_is_no_room_for_is_refused_and_may_come_later(
    proven: ProvenModel, slowly: Callable[[float], list[int]]
) -> None:
    seen = slowly(0.002)
    engine = Engine(proven, threads=1, max_running=2, max_waiting=3)
    found = await asyncio.gather(*(collect(engine, [10, 20], SHORT) for _ in range(9)), return_exceptions=True)
    assert [type(each) for each in found] == [Piece] * 5 + [EngineBusyError] * 4
    assert max(seen) == 2
    assert isinstance(await collect(engine, [10, 20], SHORT), Piece)
    engine.close()


async def test_load_tells_what_is_under_way_and_what_was_given(
    proven: ProvenModel, slowly: Callable[[float], list[int]]
) -> None:
    slowly(0.01)
    engine = Engine(proven, threads=1, max_running=1, cache_tokens=128)
    streams = [engine.generate([10, 20, 30], replace(LONG, max_tokens=8)) for _ in range(2)]
    first, second = (asyncio.create_task(anext(stream)) for stream in streams)
    given = (await first).tokens
    load = engine.load()
    assert (load.running, load.waiting, load.requests) == (1, 1, 0)
    assert 8 < load.tokens_in_flight <= 8 + 10
    assert (load.cache_tokens, load.cache_limit_tokens, load.prompt_tokens) == (16, 128, 3)
    assert load.oldest_wait_s > 0.0
    assert load.last_step_s >= 0.01
    async for piece in streams[0]:
        given += piece.tokens
    given += (await second).tokens
    await streams[1].aclose()
    await asyncio.sleep(0.05)
    load = engine.load()
    assert (load.running, load.waiting, load.tokens_in_flight, load.oldest_wait_s) == (0, 0, 0, 0.0)
    assert (load.requests, load.prompt_tokens, load.completion_tokens) == (2, 6, given)
    engine.close()


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> ProvenModel:
    """Other weights of the same shape."""
    proven = load_proven(tiny_export(tmp_path_factory.mktemp("other")))
    for parameter in proven.model.parameters():
        parameter.data.mul_(0.7)
    return proven


async def test_weights_are_swapped_while_all_goes_on(
    engine: Engine, proven: ProvenModel, other: ProvenModel, slowly: Callable[[float], list[int]]
) -> None:
    slowly(0.002)
    shared = [10] * 40
    before = await collect(engine, shared, SHORT)
    streams = [asyncio.create_task(collect(engine, [10, 20 + i], LONG)) for i in range(6)]
    blackouts_s = [await asyncio.to_thread(engine.swap, each) for each in (other, proven, other)]
    assert max(blackouts_s) <= 0.05
    assert [piece.tokens for piece in await asyncio.gather(*streams)] == [60] * 6
    fresh = Engine(other, threads=1)
    after = await collect(engine, shared, SHORT)
    assert after == await collect(fresh, shared, SHORT) != before
    fresh.close()


async def test_weights_of_another_shape_are_refused(engine: Engine, proven: ProvenModel) -> None:
    narrow = replace(proven, manifest=proven.manifest.model_copy(update={"tokenizer_size": 2}))
    with pytest.raises(EngineError, match="same shape and tokenizer"):
        engine.swap(narrow)


async def test_check_makes_a_token(engine: Engine) -> None:
    await engine.check(timeout_s=5)
    assert engine.load().completion_tokens == 1


async def test_check_counts_the_steps_of_a_busy_engine(
    proven: ProvenModel, slowly: Callable[[float], list[int]]
) -> None:
    slowly(0.005)
    engine = Engine(proven, threads=1, max_running=1, max_waiting=0)
    stream = engine.generate([10, 20], LONG)
    await anext(stream)
    await engine.check(timeout_s=1)
    await stream.aclose()
    engine.close()


@pytest.mark.parametrize("busy", [False, True])
async def test_check_notices_an_engine_that_does_not_move(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, busy: bool
) -> None:
    release = threading.Event()

    def stuck(self: Batch) -> list[Result]:
        release.wait(10)
        return []

    monkeypatch.setattr(Batch, "step", stuck)
    request = asyncio.create_task(collect(engine, [10, 20], SHORT)) if busy else None
    try:
        await asyncio.sleep(0.01)
        with pytest.raises(EngineError, match=r"no token in 0\.1 s"):
            await engine.check(timeout_s=0.1)
    finally:
        monkeypatch.undo()
        release.set()
    if request is not None:
        await request


async def test_a_closed_engine_says_so(proven: ProvenModel, slowly: Callable[[float], list[int]]) -> None:
    slowly(0.005)
    engine = Engine(proven, threads=1)
    stream = engine.generate([10, 20], LONG)
    await anext(stream)
    engine.close()
    with pytest.raises(EngineError, match="shutting down"):
        async for _ in stream:
            pass
    with pytest.raises(EngineError, match="has ended"):
        await engine.check(timeout_s=1)
    with pytest.raises(EngineError, match="has ended"):
        engine.swap(proven)


async def test_a_cache_below_the_context_is_refused(proven: ProvenModel) -> None:
    with pytest.raises(ServeError, match="a cache of 63 tokens does not hold the context of 64"):
        Engine(proven, threads=1, cache_tokens=63)


async def test_8_bits_need_bf16(proven: ProvenModel) -> None:
    with pytest.raises(ServeError, match="8-bit weights"):
        Engine(proven, threads=1, int8=True)


@pytest.mark.skipif(native.compiler() is None, reason="needs a C++ compiler")
async def test_it_serves_before_the_compiler_is_done_and_compiled_thereafter(
    proven: ProvenModel, monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer
) -> None:
    go, library = threading.Event(), native.build()

    def build() -> object:
        go.wait(10)
        return library

    monkeypatch.setattr("orchestrator.serve.engine.decoders.built", lambda: None)
    monkeypatch.setattr("orchestrator.serve.engine.decoders.build", build)
    engine = Engine(proven, threads=1)
    first = await collect(engine, [10, 20], SHORT)
    assert not engine.load().compiled
    go.set()
    while not engine.load().compiled:
        await asyncio.sleep(0.01)
    assert await collect(engine, [10, 20], SHORT) == first
    engine.close()
