"""Which special tokens an encoder finds in a tokenizer, and what is said where one is missing."""

from __future__ import annotations

import pytest

from orchestrator.data.tokens.facts import facts
from orchestrator.data.tokens.train import train_tokenizer
from orchestrator.errors import JobError
from orchestrator.job_data import Tokenizer
from orchestrator.objectives.special_tokens import frame_ids, frame_ids_if_any, mask_id, special_flags

TEXTS = ["the ship sails at dawn and the crew sings of storms"] * 4
OWN = ["[CLS]", "[SEP]", "[MASK]"]


def trained(**settings: object):
    return facts(train_tokenizer(TEXTS, Tokenizer(vocab_size=300, **settings)))


def test_wordpiece_has_them_all() -> None:
    known = trained(train="wordpiece")
    frame = frame_ids(known, purpose="classification")
    assert (frame.cls, frame.sep, frame.pad, mask_id(known)) == (2, 3, 0, 4)
    assert special_flags(known).tolist() == [True] * 5 + [False] * (known.vocab_size - 5)


def test_a_byte_level_tokenizer_has_those_that_were_asked_for() -> None:
    known = trained(train="bpe", special_tokens=OWN)
    frame = frame_ids(known, purpose="classification")
    assert [frame.cls, frame.sep, mask_id(known)] == [known.special_tokens[token] for token in OWN]
    assert frame.pad == known.eos_token_id
    assert special_flags(known).sum() == 4


@pytest.mark.parametrize("special", [[], ["[SEP]", "[PAD]"]])
def test_a_missing_token_is_named_with_what_to_set(special: list[str]) -> None:
    known = trained(train="bpe", special_tokens=special)
    assert frame_ids_if_any(known) is None
    with pytest.raises(JobError, match=r"question-answering needs the special token \[CLS\]") as caught:
        frame_ids(known, purpose="question-answering")
    assert "data.tokenizer.special_tokens" in str(caught.value.fix)
    with pytest.raises(JobError, match=r"masked-lm needs the special token \[MASK\] or <mask>; .*<\|endoftext\|>"):
        mask_id(known)
