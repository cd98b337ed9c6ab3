"""Completions together: each is what it would be alone, and memory, turns and failures keep their bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from export_fixtures import SHAPES, tiny_export
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from model.config import HeadConfig
from model.decode_native import NativeDecoder
from model.decode_torch import TorchDecoder
from model.huggingface import to_hf_config, to_hf_state
from model.native.build import build, compiler
from model.paged import Decoder, PagedCache, Pass
from orchestrator.export.prove import ProvenModel, load_proven
from orchestrator.serve.engine.batch import Batch
from orchestrator.serve.engine.completion import Completion, Made
from orchestrator.serve.engine.protocol import EngineError, Piece, Sampling

Run = Callable[..., list[list[Piece] | EngineError]]
BatchFor = Callable[..., Batch]
GREEDY = Sampling(max_tokens=20, temperature=0.0, logprobs=0, ignore_eos=True)
KINDS = ["torch", pytest.param("native", marks=pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler"))]


def decoder_of(kind: str, proven: ProvenModel) -> Decoder:
    if kind == "torch":
        return TorchDecoder(proven.model)
    return NativeDecoder(build(), proven.model, threads=1, most_tokens=64)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ProvenModel:
    export = tiny_export(tmp_path_factory.mktemp(request.param), config=SHAPES[request.param])
    return replace_eos(load_proven(export))


def replace_eos(proven: ProvenModel) -> ProvenModel:
    """No token ends the text."""
    return replace(proven, manifest=proven.manifest.model_copy(update={"eos_token_id": -1}))


@pytest.fixture(scope="module")
def transformers_ids(served: ProvenModel) -> Callable[[list[int], int], list[int]]:
    """What transformers' own generation makes of a prompt, greedily."""
    config = served.config
    data = to_hf_config(config, HeadConfig(), bos_token_id=None, eos_token_id=None, dtype="float32")
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(data.pop("model_type"), **data)).eval()
    theirs.load_state_dict(to_hf_state(served.model.state_dict(), config), strict=False)
    known: dict[tuple[int, ...], list[int]] = {}

    def ids(prompt: list[int], count: int) -> list[int]:
        if tuple(prompt) not in known:
            made = theirs.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, pad_token_id=0)
            known[tuple(prompt)] = made[0, len(prompt) :].tolist()
        return known[tuple(prompt)][:count]

    # The tokenizer is smaller than the vocabulary, and only ours knows it.
    theirs.generation_config.suppress_tokens = list(range(served.allowed_size, config.vocab_size))
    return ids


def ids_of(pieces: list[Piece]) -> list[int]:
    return [each.token for each in Piece.joined(pieces).logprobs]


PROMPTS = [[(7 * i + 3 * j) % 290 + 1 for j in range(length)] for i, length in enumerate((1, 2, 15, 16, 17, 33, 40))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 8, 32])
def test_greedy_completions_are_those_of_transformers(
    kind: str,
    count: int,
    served: ProvenModel,
    transformers_ids: Callable[[list[int], int], list[int]],
    batch_for: BatchFor,
    run_batch: Run,
) -> None:
    asked = [(PROMPTS[i % 7], replace(GREEDY, max_tokens=1 + i % 20)) for i in range(count)]
    batch = batch_for(served, decoder=decoder_of(kind, served), slots=count, pages=40)
    for (prompt, sampling), pieces in zip(asked, run_batch(served, asked, batch), strict=True):
        assert isinstance(pieces, list)
        assert ids_of(pieces) == transformers_ids(prompt, sampling.max_tokens)


COMERS = st.tuples(st.sampled_from(PROMPTS), st.integers(1, 20), st.integers(0, 30), st.sampled_from([99, 0, 3, 9]))
"""A prompt, how many tokens, the step at which it comes, and after how many tokens it is cancelled."""
SIZES = st.builds(dict, slots=st.integers(1, 5), pages=st.integers(4, 12), step_tokens=st.integers(6, 64))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(comers=st.lists(COMERS, min_size=1, max_size=12), sizes=SIZES)
def test_whoever_comes_and_goes_meanwhile_changes_nothing(
    kind: str,
    comers: list[tuple[list[int], int, int, int]],
    sizes: dict[str, int],
    served: ProvenModel,
    transformers_ids: Callable[[list[int], int], list[int]],
    batch_for: BatchFor,
) -> None:
    """Lengths, order of arrival, cancellations, sizes of the cache and of a step: all as they may be."""
    batch = batch_for(served, decoder=decoder_of(kind, served), **sizes)
    made: dict[Completion, list[int]] = {}
    leaves: dict[Completion, int] = {}
    for step in range(400):
        for prompt, count, comes, after in comers:
            if comes == step:
                completion = Completion.asked(served, prompt, replace(GREEDY, max_tokens=count))
                made[completion], leaves[completion] = [], after
                batch.waiting.append(completion)
        for completion, ids in made.items():
            completion.cancelled = len(ids) >= leaves[completion]
        for completion, result in batch.step():
            assert isinstance(result, Made)
            assert result.token is not None
            made[completion].append(result.token)
        assert len(batch.running) <= sizes["slots"]
    assert len(made) == len(comers)
    for completion, ids in made.items():
        assert ids == transformers_ids(completion.prompt_T, len(ids))
        assert len(ids) == min(completion.sampling.max_tokens, leaves[completion])
    assert batch.pool.held == 0


SEEDED = Sampling(max_tokens=12, seed=3, logprobs=2, of_prompt=True)
MIXED = [
    replace(SEEDED, top_p=0.8),
    replace(SEEDED, temperature=0.0),
    replace(SEEDED, top_k=5, presence_penalty=1.0),
    replace(SEEDED, min_p=0.1, repetition_penalty=1.3, of_prompt=False),
    replace(SEEDED, logit_bias=((5, 3.0),), temperature=0.7),
    SEEDED,
]


@pytest.mark.parametrize("kind", KINDS)
def test_text_and_logprobs_are_the_same_whatever_is_beside(
    kind: str, proven: ProvenModel, batch_for: BatchFor, run_batch: Run
) -> None:
    asked = [(PROMPTS[i % 7][:30], sampling) for i, sampling in enumerate(MIXED)]
    together = run_batch(proven, asked, batch_for(proven, decoder=decoder_of(kind, proven), step_tokens=9))
    for one, pieces in zip(asked, together, strict=True):
        (alone,) = run_batch(proven, [one], batch_for(proven, decoder=decoder_of(kind, proven)))
        assert isinstance(pieces, list)
        assert isinstance(alone, list)
        ours, theirs = Piece.joined(pieces), Piece.joined(alone)
        assert (ours.text, ours.finish_reason) == (theirs.text, theirs.finish_reason)
        for mine, other in ((ours.logprobs, theirs.logprobs), (ours.prompt_logprobs[1:], theirs.prompt_logprobs[1:])):
            assert [each.token for each in mine] == [each.token for each in other]
            assert [each.logprob for each in mine] == pytest.approx([each.logprob for each in other], abs=1e-5)


def passes(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """How many tokens each slot has in each pass from now on."""
    seen: list[list[int]] = []
    hidden = batch.decoder.hidden

    def watched(tokens: Pass, cache: PagedCache) -> Tensor:
        seen.append(torch.bincount(tokens.slots_N.long(), minlength=4).tolist())
        return hidden(tokens, cache)

    monkeypatch.setattr(batch.decoder, "hidden", watched)
    return seen


def test_a_long_prompt_is_read_in_parts_beside_those_that_make_tokens(
    proven: ProvenModel, batch_for: BatchFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_for(proven, slots=4, step_tokens=10)
    seen = passes(batch, monkeypatch)
    batch.waiting.append(Completion.asked(proven, [1], GREEDY))
    batch.step()
    batch.waiting.append(Completion.asked(proven, PROMPTS[6], GREEDY))
    batch.waiting.append(Completion.asked(proven, [2, 3], GREEDY))
    for _ in range(6):
        batch.step()
    assert [sum(each) for each in seen] == [1, 10, 10, 10, 10, 7, 3]
    assert [each[0] for each in seen] == [1] * 7


def test_a_prompt_that_comes_again_is_not_read_again(
    proven: ProvenModel, batch_for: BatchFor, run_batch: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_for(proven, slots=4)
    seen = passes(batch, monkeypatch)
    asked = (PROMPTS[6], replace(GREEDY, max_tokens=3))
    first, again = run_batch(proven, [asked], batch), run_batch(proven, [asked], batch)
    assert first == again
    assert [sum(each) for each in seen] == [40, 1, 1, 8, 1, 1]
    assert (batch.prompt_tokens, batch.cached_prompt_tokens) == (80, 32)


def test_whoever_waits_comes_in_the_order_of_arrival_even_if_another_would_fit(
    proven: ProvenModel, batch_for: BatchFor
) -> None:
    batch = batch_for(proven, slots=3, pages=4)
    wants = [replace(GREEDY, max_tokens=count) for count in (31, 47, 4)]
    asked = [Completion.asked(proven, [9], sampling) for sampling in wants]
    batch.waiting.extend(asked)
    batch.step()
    assert (batch.running, list(batch.waiting)) == (asked[:1], asked[1:])
    asked[0].cancelled = True
    batch.step()
    assert (batch.running, list(batch.waiting)) == (asked[1:], [])
    assert batch.pool.held == 4


def test_who_was_cancelled_leaves_at_the_next_step(proven: ProvenModel, batch_for: BatchFor) -> None:
    batch = batch_for(proven)
    one, other = (Completion.asked(proven, [9, 8], GREEDY) for _ in range(2))
    batch.waiting.extend([one, other])
    batch.step()
    one.cancelled = True
    assert [completion for completion, _ in batch.step()] == [other]
    assert batch.running == [other]


class Spoiling:
    """A decoder whose results are no numbers for prompts that begin with one token."""

    def __init__(self, decoder: Any, token: int) -> None:
        self._decoder, self._token = decoder, token
        self._slots: set[int] = set()

    def hidden(self, tokens: Pass, cache: PagedCache) -> Tensor:
        first = (tokens.positions_N == 0) & (tokens.ids_N == self._token)
        spoilt = torch.isin(tokens.slots_N, tokens.slots_N[first])
        x_ND: Tensor = self._decoder.hidden(tokens, cache)
        x_ND[spoilt] = torch.nan
        pages = cache.tables_RM[tokens.slots_N[first], 0].long()
        cache.values_LAGSW[:, pages] = torch.nan
        return x_ND

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_that_are_none_reach_their_own_client_only(
    kind: str, proven: ProvenModel, batch_for: BatchFor, run_batch: Run
) -> None:
    batch = batch_for(proven, decoder=Spoiling(decoder_of(kind, proven), 66), pages=12, slots=3)
    asked = [([9, 8], GREEDY), ([66, 8], GREEDY), ([7] * 20, GREEDY), ([9, 8], GREEDY)]
    sound, spoilt, other, later = run_batch(proven, asked, batch)
    assert "no numbers" in str(spoilt)
    (alone,) = run_batch(proven, asked[:1])
    assert isinstance(other, list)
    for found in (sound, later):
        assert isinstance(found, list)
        assert isinstance(alone, list)
        assert ids_of(found) == ids_of(alone)
    assert batch.pool.held == 0


def test_a_pass_that_fails_ends_those_in_it_and_no_others(
    proven: ProvenModel, batch_for: BatchFor, run_batch: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_for(proven, slots=2)

    def fails(tokens: Pass, cache: PagedCache) -> Tensor:
        monkeypatch.undo()
        raise MemoryError

    monkeypatch.setattr(batch.decoder, "hidden", fails)
    first, second, third = run_batch(proven, [([9], GREEDY)] * 3, batch)
    assert str(first) == str(second) == "MemoryError while generating"
    assert isinstance(third, list)
    assert len(ids_of(third)) == 20
