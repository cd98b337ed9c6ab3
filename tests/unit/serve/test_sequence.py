"""One completion, step by step, on a tiny network."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from orchestrator.export.prove import ProvenModel
from orchestrator.serve.sequence import Piece, Sampling, Sequence

PROMPT = [10, 20, 30]


def run(proven: ProvenModel, prompt: list[int], sampling: Sampling) -> list[Piece]:
    sequence = Sequence(proven, prompt, sampling)
    pieces = [sequence.step()]
    while pieces[-1].finish_reason is None:
        pieces.append(sequence.step())
    return pieces


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


@torch.inference_mode()
def greedy_without_cache(proven: ProvenModel, count: int) -> list[int]:
    ids = list(PROMPT)
    for _ in range(count):
        ids.append(int(proven.model(torch.tensor([ids]))[0, -1, : proven.allowed_size].argmax()))
    return ids[len(PROMPT) :]


def test_greedy_is_the_arg_max_of_the_network_without_a_cache(proven: ProvenModel) -> None:
    want = greedy_without_cache(proven, 12)
    assert proven.eos_id not in want
    pieces = run(proven, PROMPT, Sampling(max_tokens=12, temperature=0.0))
    assert text(pieces) == proven.tokenizer.decode(want)
    assert (len(pieces), pieces[-1].finish_reason) == (12, "length")
    assert sum(piece.tokens for piece in pieces) == 12


def test_the_same_seed_gives_the_same_text_and_another_another(proven: ProvenModel) -> None:
    texts = [text(run(proven, PROMPT, Sampling(max_tokens=20, seed=seed))) for seed in (1, 1, 2, None)]
    assert texts[0] == texts[1]
    assert len({texts[0], texts[2], texts[3]}) == 3


def test_a_tiny_nucleus_is_greedy(proven: ProvenModel) -> None:
    greedy = run(proven, PROMPT, Sampling(max_tokens=12, temperature=0.0))
    assert run(proven, PROMPT, Sampling(max_tokens=12, top_p=1e-9, seed=3)) == greedy


def test_the_end_of_text_token_ends_it_without_text(proven: ProvenModel) -> None:
    want = greedy_without_cache(proven, 4)
    ending = replace(proven, manifest=proven.manifest.model_copy(update={"eos_token_id": want[3]}))
    pieces = run(ending, PROMPT, Sampling(max_tokens=50, temperature=0.0))
    first = want.index(want[3])
    assert text(pieces) == proven.tokenizer.decode(want[:first])
    assert pieces[-1].finish_reason == "stop"
    assert sum(piece.tokens for piece in pieces) == first + 1


def test_a_stop_text_ends_it_and_stays_out(proven: ProvenModel) -> None:
    whole = text(run(proven, PROMPT, Sampling(max_tokens=30, seed=5)))
    stop = whole[4:7]
    pieces = run(proven, PROMPT, Sampling(max_tokens=30, seed=5, stop=(stop,)))
    assert text(pieces) == whole[: whole.index(stop)]
    assert pieces[-1].finish_reason == "stop"
    assert sum(piece.tokens for piece in pieces) < 30


def test_a_beginning_of_a_stop_text_at_the_end_is_text(proven: ProvenModel) -> None:
    whole = text(run(proven, PROMPT, Sampling(max_tokens=8, seed=5)))
    pieces = run(proven, PROMPT, Sampling(max_tokens=8, seed=5, stop=(whole[-1] + "\0",)))
    assert (text(pieces), pieces[-1].finish_reason) == (whole, "length")


def test_padding_of_the_vocabulary_is_never_drawn(proven: ProvenModel) -> None:
    assert proven.config.vocab_size > proven.allowed_size
    narrow = replace(proven, manifest=proven.manifest.model_copy(update={"tokenizer_size": 2}))
    pieces = run(narrow, PROMPT, Sampling(max_tokens=40, seed=0, temperature=2.0))
    assert set(text(pieces)) <= {proven.tokenizer.decode([1])}


@pytest.mark.parametrize("max_tokens", [1, 61])
def test_it_may_fill_the_context(proven: ProvenModel, max_tokens: int) -> None:
    pieces = run(replace_eos(proven), PROMPT, Sampling(max_tokens=max_tokens, seed=0))
    assert sum(piece.tokens for piece in pieces) == max_tokens


def replace_eos(proven: ProvenModel) -> ProvenModel:
    """No token ends the text."""
    return replace(proven, manifest=proven.manifest.model_copy(update={"eos_token_id": -1}))


def test_no_tokens_are_no_work(proven: ProvenModel) -> None:
    assert run(proven, PROMPT, Sampling(max_tokens=0)) == [Piece("", 0, "length")]
