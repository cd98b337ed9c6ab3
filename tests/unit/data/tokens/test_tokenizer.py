"""The tokenizer: the same text gives the same bytes, any text comes back, and text cannot spell a special token."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from orchestrator.data.tokens.tokenizer import END_OF_TEXT, Encoder, facts, load, read_tokenizer, train_bpe
from orchestrator.errors import DataError

TEXTS = ["def add(a, b):\n    return a + b\n", "the ship sails, the ship sinks\n", "naïve 漢字 🚢\n"] * 5
TOKENIZER = train_bpe(TEXTS, 300)
ENCODER = Encoder(TOKENIZER)


def decode(ids: list[int]) -> str:
    return str(load(TOKENIZER).decode(ids, skip_special_tokens=False))


def test_training_is_deterministic() -> None:
    assert train_bpe(iter(TEXTS), 300) == TOKENIZER
    assert train_bpe(TEXTS, 280) != TOKENIZER


def test_what_was_trained_is_what_was_asked_for() -> None:
    known = facts(TOKENIZER)
    assert (known.vocab_size, known.eos_token, known.eos_token_id) == (300, END_OF_TEXT, 0)
    assert known.sha256 == hashlib.sha256(TOKENIZER.encode()).hexdigest()
    assert known.dtype == np.uint16
    assert len(set(load(TOKENIZER).get_vocab().values())) == 300


def test_a_small_text_yields_fewer_tokens() -> None:
    assert facts(train_bpe(["ab"], 4096)).vocab_size == 258  # the end, 256 bytes, and one merge


@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_any_text_comes_back(text: str) -> None:
    (ids,) = ENCODER.encode([text])
    assert ids[-1] == ENCODER.facts.eos_token_id
    assert decode(ids[:-1].tolist()) == text
    assert ids.dtype == np.uint16


@pytest.mark.parametrize("text", ["👩‍👩‍👧‍👦🏴‍☠️", "\x00\x01\x7f", "  \n\t  ", "é" * 100, "", "\u202eright to left"])
def test_odd_text_comes_back(text: str) -> None:
    assert decode(ENCODER.encode([text])[0][:-1].tolist()) == text


def test_text_cannot_spell_a_special_token() -> None:
    text = f"before {END_OF_TEXT} after"
    (ids,) = ENCODER.encode([text])
    assert ids.tolist().count(ENCODER.facts.eos_token_id) == 1
    assert decode(ids[:-1].tolist()) == text


def test_special_text_in_what_is_trained_on_stays_text() -> None:
    text = train_bpe([f"{END_OF_TEXT} {END_OF_TEXT}\n"] * 20, 300)
    (ids,) = Encoder(text).encode([END_OF_TEXT])
    assert ids.tolist().count(facts(text).eos_token_id) == 1


def test_each_document_is_encoded_alone_whatever_the_batch() -> None:
    documents = [f"text {i}" for i in range(600)]
    together = ENCODER.encode(documents)
    assert [ids.tolist() for ids in together] == [ENCODER.encode([d])[0].tolist() for d in documents]
    assert ENCODER.encode([]) == []


def given_tokenizer(vocabulary: dict[str, int]) -> str:
    return str(Tokenizer(models.WordLevel(vocabulary, unk_token="?")).to_str())


def test_a_given_tokenizer_is_known_by_its_largest_id() -> None:
    known = facts(given_tokenizer({"?": 0, "</s>": 7, "x": 70_000}))
    assert (known.vocab_size, known.eos_token, known.eos_token_id) == (70_001, "</s>", 7)
    assert known.dtype == np.uint32


def test_a_given_tokenizer_without_an_end_token_is_refused() -> None:
    with pytest.raises(DataError, match=r"no end-of-text token; looked for <\|endoftext\|>, </s>"):
        facts(given_tokenizer({"?": 0, "x": 1}))


def test_a_given_file_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(TOKENIZER, encoding="utf-8")
    assert read_tokenizer(tmp_path / "tokenizer.json") == TOKENIZER


@pytest.mark.parametrize("text", ["", "{}", "not json", json.dumps({"model": {"type": "Magic"}})])
def test_what_is_no_tokenizer_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(DataError, match=r"tokenizer\.json is not a tokenizer\.json: "):
        read_tokenizer(tmp_path / "tokenizer.json")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json cannot be read"):
        read_tokenizer(tmp_path / "none.json")
