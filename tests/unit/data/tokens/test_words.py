"""The table of words gives the ids of the library: for each kind of character, for any text, for real text."""

from __future__ import annotations

import gzip
import json
import os
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from orchestrator.data.tokens import words as words_module
from orchestrator.data.tokens.tokenizer import END_OF_TEXT, Encoder, load, train_bpe, train_tokenizer
from orchestrator.job_data import Tokenizer as Settings

TEXTS = [
    "def add(a, b):\n    return a + b  # it's 12345\n",
    "The ship's crew couldn't sail; they'll wait. We'VE I'M\r\n\r\n\tÜber naïve Ωmega\n",
    "漢字かな交じり文。 ١٢٣ ½ ² 🚢👩‍👩‍👧‍👦 \u00a0\u2003 x\u0301\n",
] * 8
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace("{1,3}", "")


def split_bpe(pattern: str) -> str:
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return str(tokenizer.to_str())


ALL = {
    "gpt2": train_bpe(TEXTS, 400),
    "llama3": split_bpe(LLAMA_3),
    "qwen2": split_bpe(QWEN_2),
    "bert": train_tokenizer(TEXTS, Settings(train="wordpiece", vocab_size=300, lowercase=True)),
    "bert-cased": train_tokenizer(TEXTS, Settings(train="wordpiece", vocab_size=300)),
}
ENCODERS = {name: Encoder(text) for name, text in ALL.items()}
by_name = pytest.mark.parametrize("name", list(ALL))


def library_ids(name: str, texts: list[str]) -> list[list[int]]:
    tokenizer = load(ALL[name])
    tokenizer.encode_special_tokens = True
    return [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]


def assert_same(name: str, texts: list[str]) -> None:
    ours = ENCODERS[name].ids(texts)
    for text, ids, wanted in zip(texts, ours, library_ids(name, texts), strict=True):
        assert ids.tolist() == wanted, repr(text)


@by_name
def test_these_tokenizers_have_a_table(name: str) -> None:
    assert ENCODERS[name].has_word_table


@pytest.mark.parametrize("name", ["gpt2", "llama3", "bert"])
def test_characters_are_cut_as_the_library_cuts_it(name: str) -> None:
    codes = [c for c in range(0x30000) if not 0xD800 <= c < 0xE000] + list(range(0xE0000, 0xE0200))
    small = (
        range(0x3400),
        range(0xA000, 0xAC00),
        range(0xF900, 0x10180),
        range(0x1D400, 0x1D800),
        range(0x1F600, 0x1F640),
    )
    chosen = [c for c in codes if c % 31 == 0 or any(c in block for block in small)]  # of CJK and Hangul: a sample
    around = ("a{c}a 0{c}0", " {c} '{c}{c}\n{c} !{c}!  {c}x")
    probes = ["".join(form.format(c=chr(c)) for form in around) for c in chosen]
    assert_same(name, ["".join(probes[i : i + 8]) for i in range(0, len(probes), 8)])


SPELLED = (
    "'s 'S 'ſ 'll ' a É ß 1 23 4567 ² ٣ Ⅷ 𝟘 𝐀 𐌰 漢 。 」 ！ … ! ... — 🚢 [SEP] [CLS] ##a Ġ def _x Ａ ﬁ İ Σ "
    f"\u0301 \u200d \x00 \ufeff \u00ad {END_OF_TEXT}"
)
SPACES = [" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\x1c", "\x85", " return"]
PIECES = st.sampled_from([*SPELLED.split(" "), *SPACES])


@given(st.lists(st.one_of(PIECES, st.text(st.characters(codec="utf-8"), max_size=6)), max_size=14).map("".join))
def test_any_text_has_the_ids_of_the_library(text: str) -> None:
    for name in ALL:
        assert_same(name, [text])


@by_name
def test_a_long_text_is_cut_into_slices_without_a_trace(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words_module, "_SLICE_CHARACTERS", 20)
    assert_same(name, ["".join(TEXTS), "x" * 100, "a b " * 50])


@by_name
def test_a_full_table_begins_anew(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words_module, "_MAX_WORDS", 10)
    monkeypatch.setattr(words_module, "_MAX_WORD_CHARACTERS", 3)
    assert_same(name, TEXTS[:3] * 3)


@by_name
def test_real_text_has_the_ids_of_the_library(name: str) -> None:
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    texts = [(stdlib / f).read_text(encoding="utf-8") for f in ("textwrap.py", "locale.py", "html/entities.py")]
    if shared := os.environ.get("SLIPWAY_TEST_DATA"):
        with gzip.open(Path(shared) / "wikitext-2/test.txt.gz", "rt", encoding="utf-8") as file:
            texts.append(file.read()[:100_000])
    assert_same(name, texts)


def changed(text: str, **changes: object) -> str:
    parts = json.loads(text)
    parts.update({key: value for key, value in changes.items() if key != "model"})
    parts["model"].update(changes.get("model", {}))
    return json.dumps(parts)


def with_added(text: str) -> str:
    tokenizer = Tokenizer.from_str(text)
    tokenizer.add_tokens([AddedToken("return")])
    return str(tokenizer.to_str())


def with_normalizer(text: str) -> str:
    tokenizer = Tokenizer.from_str(text)
    tokenizer.normalizer = normalizers.NFC()
    return str(tokenizer.to_str())


@pytest.mark.parametrize(
    "text",
    [
        changed(ALL["gpt2"], model={"dropout": 0.1}),
        with_normalizer(ALL["gpt2"]),
        with_added(ALL["gpt2"]),
        ALL["gpt2"].replace('"add_prefix_space": false', '"add_prefix_space": true'),
        split_bpe(r"\p{L}+|\P{L}"),
    ],
    ids=["dropout", "normalizer", "ordinary added token", "prefix space", "unknown pattern"],
)
def test_where_words_do_not_stand_alone_the_library_does_it_all(text: str) -> None:
    assert not Encoder(text).has_word_table


def test_a_character_that_the_library_sees_otherwise_is_left_to_it() -> None:
    encoder = ENCODERS["gpt2"]
    text = "a𝐀b 𐌰𐌱 ok"  # letters beyond the planes that the pattern knows
    wanted = library_ids("gpt2", [text])[0]
    assert encoder.ids([text])[0].tolist() == wanted
    assert np.array_equal(encoder.encode([text])[0][:-1], wanted)
