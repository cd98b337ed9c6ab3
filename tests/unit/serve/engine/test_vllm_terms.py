"""What vLLM is asked for, and what is made of its outputs; vLLM itself is asked by tests/slow/test_vllm_engine.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from export_fixtures import TINY, tiny_export

from model.config import ModelConfig
from model.logprob import TokenLogprob
from orchestrator.errors import ServeError
from orchestrator.export.prove import ProvenModel, load_proven
from orchestrator.job import Serve
from orchestrator.serve.engine import installed
from orchestrator.serve.engine.completion import Made
from orchestrator.serve.engine.protocol import Sampling
from orchestrator.serve.engine.vllm_engine import VllmEngine
from orchestrator.serve.engine.vllm_terms import alike, made_of, parameters, prompt_logprobs


@dataclass
class Said:
    """vLLM's `Logprob`."""

    logprob: float
    rank: int


@dataclass
class Choice:
    """vLLM's `CompletionOutput`, as far as it is read."""

    token_ids: list[int]
    logprobs: list[dict[int, Said]] | None = None


@dataclass
class Output:
    """vLLM's `RequestOutput`."""

    outputs: list[Choice]
    prompt_logprobs: list[Any] = field(default_factory=list)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_export(tmp_path_factory.mktemp("terms"))


@pytest.fixture(scope="module")
def proven(export: Path) -> ProvenModel:
    return load_proven(export)


def test_what_ends_a_completion_is_named_and_texts_stay_here(proven: ProvenModel) -> None:
    asked = parameters(Sampling(max_tokens=9, stop=("x",), stop_token_ids=(7, 7), min_tokens=2), proven)
    assert (asked["stop_token_ids"], asked["ignore_eos"], asked["min_tokens"]) == ([7, proven.eos_id], True, 2)
    assert "stop" not in asked
    assert asked["detokenize"] is False
    assert parameters(Sampling(max_tokens=9, ignore_eos=True), proven)["stop_token_ids"] == []


def test_only_tokens_are_drawn_and_told(proven: ProvenModel) -> None:
    assert (proven.config.vocab_size, proven.allowed_size) == (320, 300)
    asked = parameters(Sampling(max_tokens=0, logprobs=2, of_prompt=True), proven)
    assert asked["allowed_token_ids"] == list(range(300))
    assert (asked["max_tokens"], asked["logprobs"], asked["prompt_logprobs"]) == (1, 20, 20)
    silent = parameters(Sampling(max_tokens=3), proven)
    assert (silent["logprobs"], silent["prompt_logprobs"]) == (None, None)


def test_outputs_become_tokens_with_the_likeliest_beside(proven: ProvenModel) -> None:
    sampling = Sampling(max_tokens=4, logprobs=2, of_prompt=True)
    first = {5: Said(-4.0, 9), 310: Said(-0.1, 1), 8: Said(-2.0, 3), 7: Said(-1.0, 2)}
    prompt = [None, {6: Said(-3.0, 2), 1: Said(-0.5, 1)}]
    output = Output([Choice([5, 6], [first, {6: Said(-0.2, 1)}])], prompt)
    before = (TokenLogprob(4, None), TokenLogprob(6, -3.0, ((1, -0.5), (6, -3.0))))
    assert made_of(output, [4, 6], sampling, allowed=300) == [
        Made(5, None, TokenLogprob(5, -4.0, ((7, -1.0), (8, -2.0))), before),
        Made(6, None, TokenLogprob(6, -0.2, ((6, -0.2),))),
    ]
    assert made_of(Output([Choice([5])]), [4], Sampling(max_tokens=1), allowed=300) == [Made(5, None)]


def test_a_prompt_says_what_the_network_says_or_where_it_does_not() -> None:
    want_TV = torch.randn(4, 9, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    tokens = [3, 1, 8, 2]
    values = [None, *(float(want_TV[place, token]) for place, token in enumerate(tokens[1:]))]
    told = [TokenLogprob(token, value) for token, value in zip(tokens, values, strict=True)]
    assert alike(told, want_TV, exact=True) is None
    assert alike(told, want_TV + 1e-3, exact=False) is None
    assert "token 2 differs by 0.01" in str(
        alike([*told[:2], TokenLogprob(8, values[2] + 0.01), told[3]], want_TV, exact=True)
    )  # type: ignore[operator]
    assert alike(told, want_TV + 1.0, exact=False) is not None
    assert alike([told[0], TokenLogprob(1, float("nan"))], want_TV, exact=False) is not None
    for exact in (True, False):
        assert alike([*told[:2], TokenLogprob(8, float("nan")), told[3]], want_TV, exact=exact) is not None
    assert alike(told[:1], want_TV, exact=True) == "it says nothing of some tokens"


def test_prompts_that_nobody_asks_about_are_not_read() -> None:
    assert prompt_logprobs(Output([], [None]), [1], Sampling(max_tokens=1), allowed=9) == ()


def test_without_vllm_the_fix_is_to_install_it(
    export: Path, proven: ProvenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installed.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ServeError, match="vLLM is not installed") as error:
        VllmEngine(proven, export, Serve(engine="vllm"), max_waiting=1)
    assert "pip install vllm" in str(error.value.fix)


def test_the_shape_of_an_unpadded_vocabulary_needs_no_list(tmp_path: Path) -> None:
    config = ModelConfig(**{**TINY.to_dict(), "vocab_size": 300})
    asked = parameters(Sampling(max_tokens=1, logprobs=3), load_proven(tiny_export(tmp_path, config=config)))
    assert (asked["allowed_token_ids"], asked["logprobs"]) == (None, 3)
