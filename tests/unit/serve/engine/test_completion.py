"""One completion, step by step, on a tiny network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.logprob import TokenLogprob
from orchestrator.export.prove import ProvenModel
from orchestrator.serve.engine.protocol import EngineError, Piece, Sampling

Run = Callable[[ProvenModel, list[int], Sampling], list[Piece]]
PROMPT = [10, 20, 30]


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


@torch.inference_mode()
def greedy_without_cache(proven: ProvenModel, count: int) -> list[int]:
    ids = list(PROMPT)
    for _ in range(count):
        ids.append(int(proven.model(torch.tensor([ids]))[0, -1, : proven.allowed_size].argmax()))
    return ids[len(PROMPT) :]


def test_greedy_is_the_arg_max_of_the_network_without_a_cache(run: Run, proven: ProvenModel) -> None:
    want = greedy_without_cache(proven, 12)
    assert proven.eos_id not in want
    pieces = run(proven, PROMPT, Sampling(max_tokens=12, temperature=0.0))
    assert text(pieces) == proven.tokenizer.decode(want)
    assert (len(pieces), pieces[-1].finish_reason) == (12, "length")
    assert sum(piece.tokens for piece in pieces) == 12


def test_the_same_seed_gives_the_same_text_and_another_another(run: Run, proven: ProvenModel) -> None:
    texts = [text(run(proven, PROMPT, Sampling(max_tokens=20, seed=seed))) for seed in (1, 1, 2, None)]
    assert texts[0] == texts[1]
    assert len({texts[0], texts[2], texts[3]}) == 3


def test_a_tiny_nucleus_is_greedy(run: Run, proven: ProvenModel) -> None:
    greedy = run(proven, PROMPT, Sampling(max_tokens=12, temperature=0.0))
    assert run(proven, PROMPT, Sampling(max_tokens=12, top_p=1e-9, seed=3)) == greedy


def test_the_end_of_text_token_ends_it_without_text(run: Run, proven: ProvenModel) -> None:
    want = greedy_without_cache(proven, 4)
    ending = replace(proven, manifest=proven.manifest.model_copy(update={"eos_token_id": want[3]}))
    pieces = run(ending, PROMPT, Sampling(max_tokens=50, temperature=0.0))
    first = want.index(want[3])
    assert text(pieces) == proven.tokenizer.decode(want[:first])
    assert pieces[-1].finish_reason == "stop"
    assert sum(piece.tokens for piece in pieces) == first + 1


def test_a_stop_text_ends_it_and_stays_out(run: Run, proven: ProvenModel) -> None:
    whole = text(run(proven, PROMPT, Sampling(max_tokens=30, seed=5)))
    stop = whole[4:7]
    pieces = run(proven, PROMPT, Sampling(max_tokens=30, seed=5, stop=(stop,)))
    assert text(pieces) == whole[: whole.index(stop)]
    assert pieces[-1].finish_reason == "stop"
    assert sum(piece.tokens for piece in pieces) < 30


def test_a_beginning_of_a_stop_text_at_the_end_is_text(run: Run, proven: ProvenModel) -> None:
    whole = text(run(proven, PROMPT, Sampling(max_tokens=8, seed=5)))
    pieces = run(proven, PROMPT, Sampling(max_tokens=8, seed=5, stop=(whole[-1] + "\0",)))
    assert (text(pieces), pieces[-1].finish_reason) == (whole, "length")


def test_padding_of_the_vocabulary_is_never_drawn(run: Run, proven: ProvenModel) -> None:
    assert proven.config.vocab_size > proven.allowed_size
    narrow = replace(proven, manifest=proven.manifest.model_copy(update={"tokenizer_size": 2}))
    pieces = run(narrow, [1], Sampling(max_tokens=40, seed=0, temperature=2.0))
    assert set(text(pieces)) <= {proven.tokenizer.decode([1])}


@pytest.mark.parametrize("max_tokens", [1, 61])
def test_it_may_fill_the_context(run: Run, proven: ProvenModel, max_tokens: int) -> None:
    pieces = run(replace_eos(proven), PROMPT, Sampling(max_tokens=max_tokens, seed=0))
    assert sum(piece.tokens for piece in pieces) == max_tokens


def replace_eos(proven: ProvenModel) -> ProvenModel:
    """No token ends the text."""
    return replace(proven, manifest=proven.manifest.model_copy(update={"eos_token_id": -1}))


def test_no_tokens_are_no_work(run: Run, proven: ProvenModel) -> None:
    assert run(proven, PROMPT, Sampling(max_tokens=0)) == [Piece("", 0, "length")]


@torch.inference_mode()
def of_one_forward(proven: ProvenModel, ids: list[int]) -> list[float]:
    """Log-probabilities of all tokens but the first, without a cache."""
    logprobs_TV = proven.model(torch.tensor([ids]))[0].log_softmax(-1)
    return [float(logprobs_TV[at, token]) for at, token in enumerate(ids[1:])]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(st.integers(1, 299), min_size=1, max_size=40),
    st.integers(0, 20),
    st.floats(0.0, 2.0),
    st.floats(0.1, 1.0),
)
def test_logprobs_are_those_of_one_forward_however_tokens_are_drawn(
    run: Run, proven: ProvenModel, prompt: list[int], max_tokens: int, temperature: float, top_p: float
) -> None:
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=1, logprobs=2, of_prompt=True)
    piece = Piece.joined(run(proven, prompt, sampling))
    first, *rest = (*piece.prompt_logprobs, *piece.logprobs)
    assert first == TokenLogprob(prompt[0], None)
    assert len(piece.prompt_logprobs) == len(prompt)
    ids = [each.token for each in piece.logprobs]
    assert (len(ids), proven.tokenizer.decode(ids)) == (piece.tokens, piece.text)
    assert [each.logprob for each in rest] == pytest.approx(of_one_forward(proven, prompt + ids), abs=1e-5)
    assert all(len(each.top) == 2 and each.top[0][1] >= each.top[1][1] for each in rest)


def test_a_token_drawn_at_temperature_0_is_the_likeliest_to_the_bit(run: Run, proven: ProvenModel) -> None:
    piece = Piece.joined(run(proven, PROMPT, Sampling(max_tokens=20, temperature=0.0, logprobs=1)))
    assert [each.top for each in piece.logprobs] == [((each.token, each.logprob),) for each in piece.logprobs]
    assert piece.prompt_logprobs == ()


def test_nobody_who_does_not_ask_gets_logprobs(run: Run, proven: ProvenModel) -> None:
    assert {(p.logprobs, p.prompt_logprobs) for p in run(proven, PROMPT, Sampling(max_tokens=9))} == {((), ())}


def test_a_prompt_alone_is_scored_without_a_token(run: Run, proven: ProvenModel) -> None:
    (piece,) = run(proven, PROMPT, Sampling(max_tokens=0, logprobs=0, of_prompt=True))
    assert (piece.text, piece.tokens, piece.finish_reason, piece.logprobs) == ("", 0, "length", ())
    assert [(each.token, each.top) for each in piece.prompt_logprobs] == [(token, ()) for token in PROMPT]


def test_the_end_of_text_token_has_a_logprob(run: Run, proven: ProvenModel) -> None:
    ending = greedy_without_cache(proven, 1)[0]
    proven = replace(proven, manifest=proven.manifest.model_copy(update={"eos_token_id": ending}))
    (piece,) = run(proven, PROMPT, Sampling(max_tokens=5, temperature=0.0, logprobs=0))
    assert (piece.text, piece.finish_reason, [each.token for each in piece.logprobs]) == ("", "stop", [ending])


@pytest.mark.parametrize(
    ("prompt", "changes", "message"),
    [
        ([], {}, "the prompt is empty"),
        ([1, 300], {}, "not in the vocabulary of 300"),
        ([-1], {}, "not in the vocabulary"),
        ([1] * 60, {"max_tokens": 5}, "60 tokens and 5 more exceed the context of 64"),
        ([1], {"max_tokens": -1}, "-1 more exceed"),
        ([1], {"temperature": -1.0}, "temperature -1.0"),
        ([1], {"repetition_penalty": 0.0}, "repetition_penalty 0.0"),
    ],
)
def test_what_cannot_be_made_is_refused_by_name(
    run: Run, proven: ProvenModel, prompt: list[int], changes: dict[str, float], message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        run(proven, prompt, replace(Sampling(max_tokens=4), **changes))  # type: ignore[arg-type]


def ids_of(pieces: list[Piece]) -> list[int]:
    return [each.token for each in Piece.joined(pieces).logprobs]


def test_a_stop_token_ends_it_and_the_end_of_the_text_may_not(run: Run, proven: ProvenModel) -> None:
    want = greedy_without_cache(proven, 6)
    greedy = Sampling(max_tokens=6, temperature=0.0, logprobs=0)
    stopped = run(proven, PROMPT, replace(greedy, stop_token_ids=(want[3],)))
    first = want.index(want[3])
    assert (ids_of(stopped), stopped[-1].finish_reason) == (want[: first + 1], "stop")
    ending = replace(proven, manifest=proven.manifest.model_copy(update={"eos_token_id": want[2]}))
    assert len(run(ending, PROMPT, greedy)) <= 3
    assert ids_of(run(ending, PROMPT, replace(greedy, ignore_eos=True))) == want


def test_no_end_is_drawn_before_min_tokens(run: Run, proven: ProvenModel) -> None:
    want = greedy_without_cache(proven, 1)
    ending = replace(proven, manifest=proven.manifest.model_copy(update={"eos_token_id": want[0]}))
    ids = ids_of(run(ending, PROMPT, Sampling(max_tokens=9, temperature=0.0, logprobs=0, min_tokens=5)))
    assert len(ids) >= 5
    assert want[0] not in ids[:5]


def test_a_bias_decides_what_is_drawn(run: Run, proven: ProvenModel) -> None:
    biased = Sampling(max_tokens=4, temperature=1.0, logprobs=0, logit_bias=((77, 100.0),))
    assert ids_of(run(proven, PROMPT, biased)) == [77] * 4


def test_penalties_keep_tokens_from_coming_again(run: Run, proven: ProvenModel) -> None:
    penalised = Sampling(max_tokens=20, temperature=0.0, logprobs=0, presence_penalty=1000.0)
    ids = ids_of(run(proven, PROMPT, penalised))
    assert len(set(ids)) == len(ids) == 20


def test_logprobs_are_told_before_anything_changes_them(run: Run, proven: ProvenModel) -> None:
    plain = run(proven, PROMPT, Sampling(max_tokens=1, temperature=0.0, logprobs=3))
    biased = run(proven, PROMPT, Sampling(max_tokens=1, temperature=0.0, logprobs=3, logit_bias=((77, 100.0),)))
    assert plain[0].logprobs[0].top == biased[0].logprobs[0].top
