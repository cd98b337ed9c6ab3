"""The tokenizer: the same text gives the same bytes, any text comes back, and text cannot spell a special token."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from orchestrator.data.tokens.tokenizer import (
    END_OF_TEXT,
    Encoder,
    TokenizerFacts,
    facts,
    load,
    read_given,
    read_tokenizer,
    train_bpe,
    train_tokenizer,
)
from orchestrator.errors import DataError
from orchestrator.job_data import Tokenizer as Settings

TEXTS = ["def add(a, b):\n    return a + b\n", "the ship sails, the ship sinks\n", "naïve 漢字 🚢\n"] * 5
TOKENIZER = train_bpe(TEXTS, 300)
ENCODER = Encoder(TOKENIZER)


def decode(ids: list[int]) -> str:
    return str(load(TOKENIZER).decode(ids, skip_special_tokens=False))


def test_training_is_deterministic() -> None:
    assert train_bpe(iter(TEXTS), 300) == TOKENIZER
    assert train_bpe(TEXTS, 280) != TOKENIZER


def test_special_tokens_come_first_in_order() -> None:
    text = train_tokenizer(
        TEXTS, Settings(train="bpe", vocab_size=300, special_tokens=["<sep>", END_OF_TEXT]), chat=True
    )
    known = facts(text)
    assert dict(known.special_tokens) == {END_OF_TEXT: 0, "<|im_start|>": 1, "<|im_end|>": 2, "<sep>": 3}
    assert (known.vocab_size, known.turn_end_token) == (300, "<|im_end|>")
    assert train_tokenizer(TEXTS, Settings(train="bpe", vocab_size=300)) == TOKENIZER


@pytest.mark.parametrize(("template", "has"), [("chatml", True), ("{{ messages }}", False), (None, False)])
def test_a_tokenizer_for_chatml_has_the_borders_of_turns_whatever_it_is_trained_on(
    template: str | None, has: bool
) -> None:
    settings = Settings(train="bpe", vocab_size=300, chat_template=template)
    assert ("<|im_start|>" in dict(facts(train_tokenizer(TEXTS, settings)).special_tokens)) is has


def test_wordpiece_knows_the_tokens_of_bert() -> None:
    text = train_tokenizer(TEXTS, Settings(train="wordpiece", vocab_size=300, lowercase=True))
    known = facts(text)
    assert list(known.special_tokens) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert (known.pad_token_id, known.unk_token_id, known.cls_token_id, known.sep_token_id, known.mask_token_id) == (
        (0, 1, 2, 3, 4)
    )
    assert (known.eos_token, known.eos_token_id) == ("[SEP]", 3)
    assert known.vocab_size <= 300


def test_wordpiece_in_transformers_writes_a_row_as_bert_does(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    text = train_tokenizer(TEXTS, Settings(train="wordpiece", vocab_size=300, lowercase=True))
    (tmp_path / "tokenizer.json").write_text(text)
    peer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    ids = peer("Naïve SHIP", "sinks", return_token_type_ids=True)
    assert peer.convert_ids_to_tokens(ids["input_ids"])[0] == "[CLS]"
    assert peer.convert_ids_to_tokens(ids["input_ids"])[-1] == "[SEP]"
    own = Encoder(text).ids(["Naïve SHIP", "sinks"])
    assert ids["input_ids"] == [2, *own[0].tolist(), 3, *own[1].tolist(), 3]
    assert ids["token_type_ids"] == [0] * (len(own[0]) + 2) + [1] * (len(own[1]) + 1)
    assert peer.decode(own[0].tolist()) == "naive ship"


def test_case_is_kept_unless_asked() -> None:
    cased = Encoder(train_tokenizer(["Ship ship Élan élan"] * 5, Settings(train="wordpiece", vocab_size=300)))
    ids = cased.ids(["Ship", "ship", "Élan", "élan", "elan"])
    assert len({tuple(i.tolist()) for i in ids}) == 5


TRAINING = """
import hashlib, sys
from orchestrator.data.tokens.tokenizer import train_tokenizer
from orchestrator.job_data import Tokenizer
words = [chr(0x3b1 + i % 24) * (i % 3 + 1) + str(i * 7919 % 1009) for i in range(4000)]
texts = [" ".join(words[i:] + words[:i]) for i in range(0, 40, 10)]
text = train_tokenizer(texts, Tokenizer(train=sys.argv[1], vocab_size=900))
print(hashlib.sha256(text.encode()).hexdigest())
"""


@pytest.mark.parametrize("algorithm", ["bpe", "wordpiece"])
def test_training_gives_the_same_bytes_in_any_process(algorithm: str) -> None:
    seen = set()
    for threads, seed in (("1", "1"), ("2", "2"), ("4", "3")):
        environment = {**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", TRAINING, algorithm]
        seen.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(seen) == 1


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


def given_tokenizer(vocabulary: dict[str, int], *special: str) -> str:
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.add_special_tokens(list(special))
    return str(tokenizer.to_str())


def test_a_given_tokenizer_is_known_by_its_largest_id() -> None:
    known = facts(given_tokenizer({"?": 0, "</s>": 7, "x": 70_000}, "</s>"))
    assert (known.vocab_size, known.eos_token, known.eos_token_id) == (70_001, "</s>", 7)
    assert known.dtype == np.uint32


def test_a_given_tokenizer_without_an_end_token_is_refused() -> None:
    with pytest.raises(DataError, match=r"no end-of-text token; looked for <\|endoftext\|>, </s>"):
        facts(given_tokenizer({"?": 0, "x": 1}))


def test_an_end_token_that_a_text_could_spell_is_refused() -> None:
    with pytest.raises(DataError, match="end-of-text token </s> is an ordinary entry of its vocabulary"):
        facts(given_tokenizer({"?": 0, "</s>": 7}))
    with pytest.raises(DataError, match="no end-of-text token; looked for <end>"):
        facts(given_tokenizer({"?": 0}, "</s>"), eos_token="<end>")


def test_facts_can_stand_in_a_manifest() -> None:
    known = facts(TOKENIZER, chat_template="{{ messages }}")
    assert TokenizerFacts(**json.loads(json.dumps(asdict(known)))) == known


def test_a_given_file_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(TOKENIZER, encoding="utf-8")
    assert read_tokenizer(tmp_path / "tokenizer.json") == TOKENIZER


@pytest.mark.parametrize("text", ["", "{}", "not json", json.dumps({"model": {"type": "Magic"}})])
def test_what_is_no_tokenizer_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(DataError, match=r"tokenizer\.json is not a tokenizer\.json: "):
        read_tokenizer(tmp_path / "tokenizer.json")


def test_truncation_in_a_given_file_does_not_cut_documents() -> None:
    tokenizer = load(TOKENIZER)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=50)
    assert len(Encoder(tokenizer.to_str()).encode(["ship " * 50])[0]) == len(ENCODER.encode(["ship " * 50])[0])


def test_a_folder_tells_its_end_token_and_its_template(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(given_tokenizer({"?": 0}, "</s>", "<|im_end|>"))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": "</s>"}))
    config = {"eos_token": {"content": "<|im_end|>"}, "chat_template": [{"name": "default", "template": "from config"}]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    given = read_given(tmp_path)
    assert (given.eos_token, given.chat_template) == ("<|im_end|>", "from config")
    (tmp_path / "chat_template.jinja").write_text("from file")
    known = read_given(tmp_path).facts()
    assert (known.eos_token, known.chat_template) == ("<|im_end|>", "from file")
    assert read_given(tmp_path).facts(chat_template="asked for").chat_template == "asked for"
    assert read_tokenizer(tmp_path) == (tmp_path / "tokenizer.json").read_text()


def test_a_folder_with_a_broken_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(TOKENIZER)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer_config\.json is not JSON"):
        read_given(tmp_path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json cannot be read"):
        read_tokenizer(tmp_path / "none.json")
