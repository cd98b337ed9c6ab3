"""vLLM behind our protocol, where it is installed: it makes the tokens that our engine makes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from export_fixtures import SHAPES, tiny_export
from safetensors.torch import load_file, save_file

from model.config import ModelConfig
from orchestrator.errors import ServeError
from orchestrator.export.prove import load_proven
from orchestrator.job import Serve
from orchestrator.serve.engine.make import make_engine
from orchestrator.serve.engine.protocol import EngineError, Piece, Sampling

pytest.importorskip("vllm", reason="vLLM is not installed here")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SETTINGS = Serve(max_ongoing_requests=4)
GREEDY = Sampling(max_tokens=24, temperature=0.0, logprobs=2, ignore_eos=True)
PROMPTS = [[5, 6, 7], [40], list(range(20, 60))]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def export(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vLLM's attention on a CPU takes heads of 32 numbers and more."""
    config = ModelConfig(**{**SHAPES[request.param].to_dict(), "width": 128, "hidden": 256, "context": 128})
    return tiny_export(tmp_path_factory.mktemp(request.param), config=config)


def serve(engine: Any, *asked: tuple[list[int], Sampling]) -> Any:
    async def one(prompt: list[int], sampling: Sampling) -> Piece:
        return Piece.joined([piece async for piece in engine.generate(prompt, sampling)])

    return asyncio.gather(*(one(prompt, sampling) for prompt, sampling in asked))


@pytest.fixture(scope="module")
def both(export: Path) -> Iterator[tuple[asyncio.AbstractEventLoop, Any, Any]]:
    loop = asyncio.new_event_loop()

    async def start() -> Any:
        return make_engine(load_proven(export), export, SETTINGS.model_copy(update={"engine": "vllm"}))

    theirs = loop.run_until_complete(start())
    ours = make_engine(load_proven(export), export, SETTINGS)
    yield loop, theirs, ours
    theirs.close()
    ours.close()
    for task in (left := asyncio.all_tasks(loop)):
        task.cancel()
    loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    loop.close()


def test_greedy_tokens_and_their_log_probabilities_are_ours(both: Any) -> None:
    loop, theirs, ours = both
    asked = [(prompt, GREEDY) for prompt in PROMPTS]
    want, got = (loop.run_until_complete(_all(engine, asked)) for engine in (ours, theirs))
    for mine, its in zip(want, got, strict=True):
        assert (its.text, its.tokens, its.finish_reason) == (mine.text, mine.tokens, "length")
        assert [each.token for each in its.logprobs] == [each.token for each in mine.logprobs]
        for one, other in zip(its.logprobs, mine.logprobs, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-3)
            assert [token for token, _ in one.top] == [token for token, _ in other.top]


async def _all(engine: Any, asked: list[tuple[list[int], Sampling]]) -> list[Piece]:
    found: list[Piece] = await serve(engine, *asked)
    return found


def test_stops_ends_and_penalties_are_ours(both: Any) -> None:
    loop, theirs, ours = both
    text = loop.run_until_complete(_all(ours, [(PROMPTS[0], GREEDY)]))[0].text
    for sampling in (
        Sampling(max_tokens=24, temperature=0.0, stop=(text[4:6],), ignore_eos=True),
        Sampling(max_tokens=24, temperature=0.0, frequency_penalty=1.5, repetition_penalty=1.3),
        Sampling(max_tokens=24, temperature=0.0, presence_penalty=1.0, logit_bias=((7, 3.0),), min_tokens=20),
        Sampling(max_tokens=0, temperature=0.0, logprobs=1, of_prompt=True),
    ):
        want, got = (loop.run_until_complete(_all(engine, [(PROMPTS[2], sampling)]))[0] for engine in (ours, theirs))
        assert (got.text, got.tokens, got.finish_reason) == (want.text, want.tokens, want.finish_reason)
        assert [each.token for each in got.prompt_logprobs] == [each.token for each in want.prompt_logprobs]
        for one, other in zip(got.prompt_logprobs, want.prompt_logprobs, strict=True):
            assert one.logprob == (None if other.logprob is None else pytest.approx(other.logprob, abs=1e-3))


def test_a_seed_gives_the_same_completion_and_a_reader_who_goes_frees_it(both: Any) -> None:
    loop, theirs, _ = both
    drawn = Sampling(max_tokens=16, temperature=1.0, seed=3, top_p=0.9)
    once, again = (loop.run_until_complete(_all(theirs, [(PROMPTS[0], drawn)]))[0] for _ in range(2))
    assert once == again

    async def leave() -> None:
        pieces = theirs.generate([5], Sampling(max_tokens=100, temperature=0.0, ignore_eos=True))
        await anext(pieces)
        assert theirs.load().running == 1
        await pieces.aclose()

    loop.run_until_complete(leave())
    load = theirs.load()
    assert (load.running, load.waiting) == (0, 0)
    assert load.completion_tokens > 0


def test_it_agrees_with_the_probe_or_is_not_healthy(both: Any, export: Path, tmp_path: Path) -> None:
    loop, theirs, _ = both
    loop.run_until_complete(theirs.check(timeout_s=60))
    probe = load_file(export / "probe.safetensors")
    probe["logits"] = probe["logits"] + torch.randn(probe["logits"].shape, generator=torch.Generator().manual_seed(1))
    save_file(probe, tmp_path / "probe.safetensors")
    theirs._export, theirs._agrees = tmp_path, False
    with pytest.raises(EngineError, match="vLLM computes something else than"):
        loop.run_until_complete(theirs.check(timeout_s=60))
    theirs._export = export


def test_what_it_cannot_do_is_said(both: Any, export: Path, tmp_path: Path) -> None:
    _, theirs, _ = both
    with pytest.raises(EngineError, match="keeps the weights"):
        theirs.swap(load_proven(export))
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(ServeError, match=r"has no model\.safetensors\.index\.json"):
        make_engine(load_proven(export), tmp_path, SETTINGS.model_copy(update={"engine": "vllm"}))
