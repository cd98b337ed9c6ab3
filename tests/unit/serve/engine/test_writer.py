"""From tokens to pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from model.logprob import TokenLogprob
from orchestrator.serve.engine.protocol import Sampling
from orchestrator.serve.engine.text import Detokenizer
from orchestrator.serve.engine.writer import Ending, Writer

SAMPLING = Sampling(max_tokens=3, stop_token_ids=(7, 8))


@pytest.mark.parametrize(
    ("token", "count", "reason"),
    [(5, 1, None), (0, 1, "stop"), (7, 1, "stop"), (8, 3, "stop"), (5, 3, "length"), (0, 3, "stop")],
)
def test_which_token_is_the_last(token: int, count: int, reason: str | None) -> None:
    assert Ending(SAMPLING, eos_id=0).reason(token, count) == reason


def test_the_end_of_the_text_may_be_ignored() -> None:
    ending = Ending(Sampling(max_tokens=3, ignore_eos=True), eos_id=0)
    assert [ending.reason(0, count) for count in (1, 2, 3)] == [None, None, "length"]


@given(
    st.lists(st.integers(0, 299), min_size=1, max_size=30),
    st.lists(st.sampled_from(["a", "b)", "\n", "et", "ö", "漢", "\ufffd"]), max_size=2),
)
def test_tokens_have_logprobs_if_and_where_their_text_is_sent(
    tokenizer: Tokenizer, ids: list[int], stops: list[str]
) -> None:
    writer = Writer(tokenizer, Sampling(max_tokens=len(ids), stop=tuple(stops)), eos_id=0)
    detokenizer, begins, sent, told = Detokenizer(tokenizer), [], "", 0
    for token in ids:
        begins.append(detokenizer.characters)
        piece = writer.push(token, TokenLogprob(token, -1.0))
        detokenizer.push(token)
        sent += piece.text
        assert [each.token for each in piece.logprobs] == ids[told : told + len(piece.logprobs)]
        told += len(piece.logprobs)
        if piece.finish_reason is None or (piece.finish_reason == "stop" and token != 0):
            assert told == sum(begin < len(sent) for begin in begins)
        if piece.finish_reason is not None:
            break
    if piece.finish_reason == "length":
        assert told == len(ids)
