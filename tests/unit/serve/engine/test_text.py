"""Whole characters only, and nothing of a stop text, however the text is cut into pieces."""

from __future__ import annotations

import itertools

import pytest
from export_fixtures import TEXTS
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from model.logprob import TokenLogprob
from orchestrator.data.tokens.tokenizer import train_bpe
from orchestrator.serve.engine.text import Detokenizer, LogprobHolder, StopHolder

BYTES = Tokenizer.from_str(train_bpe(TEXTS, 257))
"""A tokenizer with hardly a merge: every byte of a character is a token of its own."""


def pieces_of(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [detokenizer.push(token) for token in ids] + [detokenizer.flush()]


@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_pieces_of_a_text_make_the_text_and_never_hold_half_a_character(text: str) -> None:
    pieces = pieces_of(BYTES, BYTES.encode(text, add_special_tokens=False).ids)
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@given(st.lists(st.integers(0, 299), max_size=40))
def test_any_ids_give_what_decoding_them_at_once_gives(tokenizer: Tokenizer, ids: list[int]) -> None:
    assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


def test_an_emoji_comes_whole_with_its_last_byte() -> None:
    ids = BYTES.encode("a🚢b", add_special_tokens=False).ids
    assert len(ids) == 6
    assert pieces_of(BYTES, ids) == ["a", "", "", "", "🚢", "b", ""]


def test_bytes_that_nothing_completes_come_at_the_end_as_replacement_characters() -> None:
    ids = BYTES.encode("a🚢", add_special_tokens=False).ids[:-1]
    assert pieces_of(BYTES, ids) == ["a", "", "", "", "\ufffd"]


def test_the_end_of_text_token_has_no_text(tokenizer: Tokenizer) -> None:
    assert pieces_of(tokenizer, [0, 0]) == ["", "", ""]


def test_special_tokens_have_their_name_as_text_where_they_are_shown(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer, shown=True)
    assert (detokenizer.push(0), detokenizer.characters) == ("<|endoftext|>", 13)
    assert (detokenizer.push(70), detokenizer.characters) == (tokenizer.decode([70]), 14)


def held(stops: list[str], pieces: list[str]) -> tuple[list[str], bool]:
    holder = StopHolder(stops)
    sent = [holder.push(piece) for piece in pieces]
    return [*sent, holder.flush()], holder.stopped


def cut_at_first_complete(stops: list[str], text: str) -> tuple[str, bool]:
    """The definition, letter by letter: the first stop text to be complete ends the text before it."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


@pytest.mark.parametrize(
    ("stops", "pieces", "sent", "stopped"),
    [
        ([], ["ab", "c"], ["ab", "c", ""], False),
        (["STOP"], ["no", "ne"], ["no", "ne", ""], False),
        (["STOP"], ["aST", "OPb"], ["a", "", ""], True),  # across a border, and nothing of it leaks
        (["STOP"], ["aST", "Ub"], ["a", "STUb", ""], False),  # it was none: what was held back follows
        (["STOP"], ["aSTO"], ["a", "STO"], False),  # the end: what was held back is text after all
        (["\n\n"], ["x\n", "\ny"], ["x", "", ""], True),
        (["abcd", "bc"], ["abc", "d"], ["a", "", ""], True),
        (["abc", "c"], ["a", "b", "c"], ["", "", "", ""], True),  # complete together: the longer one
        (["aab"], ["aaa", "b"], ["a", "", ""], True),
        (["🚢"], ["ship ", "🚢", "!"], ["ship ", "", "", ""], True),
    ],
)
def test_stop_texts(stops: list[str], pieces: list[str], sent: list[str], stopped: bool) -> None:
    assert held(stops, pieces) == (sent, stopped)


@given(
    st.lists(st.text("ab🚢", min_size=1, max_size=4), max_size=4),
    st.text("ab🚢", max_size=20),
    st.lists(st.integers(0, 20), max_size=6),
)
def test_the_result_does_not_depend_on_the_pieces(stops: list[str], text: str, cuts: list[int]) -> None:
    borders = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(borders)]
    sent, stopped = held(stops, pieces)
    assert ("".join(sent), stopped) == cut_at_first_complete(stops, text)


def test_logprobs_come_when_the_text_of_their_token_begins() -> None:
    holder, a, b, c, d = LogprobHolder(), *(TokenLogprob(token, -1.0) for token in range(4))
    holder.push(a, at=0)
    assert holder.take("") == ()  # half a character, or perhaps the beginning of a stop text
    holder.push(b, at=0)
    assert holder.take("xy") == (a, b)
    holder.push(c, at=2)
    holder.push(d, at=4)
    assert holder.take("z") == (c,)
    assert holder.take("z") == ()  # a stop text begins here
    assert holder.take("", whole=True) == (d,)
