"""Words, their hashes, and the hashes of runs, against plain Python."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import regex
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.refine import words as words_module
from orchestrator.data.refine.words import mix, run_hashes, split_words, word_hashes

MASK = (1 << 64) - 1
SCRIPTS = st.sampled_from("aZ_9 \t-.=’“éÉßŉİΣς्हि\u0301\u0338\u200dกัຂំမ漢々ーがｶ\u3099한한\U00020000\ufe00\ud800。")
TEXTS = st.one_of(st.text(), st.text(SCRIPTS), st.text(st.characters(max_codepoint=127)))


def plain_mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def plain_runs(hashes: list[int], length: int) -> list[int]:
    base = 0x9E3779B97F4A7C15
    runs = [hashes[i : i + length] for i in range(len(hashes) - length + 1)]
    return [plain_mix(sum(h * pow(base, i, 1 << 64) for i, h in enumerate(run)) & MASK) for run in runs]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (" \n\t-- ...", []),
        ("The cat, the CAT; a_b 3.14", ["the", "cat", "the", "cat", "a_b", "3", "14"]),
        ("don’t stop", ["don", "t", "stop"]),
        ("Straße ΣΊΣΥΦΟΣ", ["strasse", "σίσυφοσ"]),
        ("e\u0301tude étude", ["étude", "étude"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("漢字kanjiかな。", ["漢", "字", "kanji", "か", "な"]),
        ("대한민국 만세", ["대한민국", "만세"]),
        ("ไทย abc", ["ไ", "ท", "ย", "abc"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert split_words(text) == words


@given(TEXTS)
def test_hashes_are_those_of_the_words(text: str) -> None:
    assert word_hashes(text).tolist() == [xxhash.xxh3_64_intdigest(word.encode()) for word in split_words(text)]


@given(st.lists(TEXTS, max_size=5), st.sampled_from([" ", "\n", ", ", "\x1f"]))
def test_texts_side_by_side_are_words_side_by_side(texts: list[str], separator: str) -> None:
    """A separator parts words whatever stands beside it: no mark joins it, no text changes its neighbour's path."""
    joined = np.concatenate([word_hashes(text) for text in ["", *texts]])
    assert word_hashes(separator.join(texts)).tolist() == joined.tolist()


@given(TEXTS)
def test_case_punctuation_and_composition_do_not_matter(text: str) -> None:
    same = f"  {unicodedata.normalize('NFD', text)} !? "
    assert word_hashes(same).tolist() == word_hashes(text).tolist()
    if text.isascii():
        assert word_hashes(text.upper()).tolist() == word_hashes(text).tolist()


def test_all_characters_of_scripts_without_spaces_are_single() -> None:
    """The blocks in the code against the properties of Unicode: letters of these scripts are words of their own."""
    scripts = r"[[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]&&\p{L}]"
    everything = "".join(map(chr, itertools.chain(range(0xD800), range(0xE000, 0x30000))))
    letters = regex.findall(scripts, everything, regex.V1)
    assert len(letters) > 80_000
    joined = [c for c in letters if len(split_words(f"x{c}x")) != 3]
    assert joined == []


def test_the_memo_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words_module, "_MEMO_PIECES", 10)
    monkeypatch.setattr(words_module, "_memo", words_module._Memo())
    text = " ".join(f"word{i % 37}" for i in range(200)) + " " + "x" * 1000
    expected = [xxhash.xxh3_64_intdigest(word.encode()) for word in text.split()]
    assert word_hashes(text).tolist() == expected
    assert 0 < len(words_module._memo) <= 10
    assert all(len(piece) <= 64 for piece in words_module._memo)


def test_hashes_are_the_same_in_another_process() -> None:
    text = "The quick brown Füchse"
    code = f"from orchestrator.data.refine.words import *; print(run_hashes(word_hashes({text!r}), 2).tolist())"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    here = run_hashes(word_hashes(text), 2).tolist()
    assert printed.stdout.strip() == str(here)
    # Stored signatures and indexes hold these: a change of them needs a new format number.
    assert here == plain_runs([xxhash.xxh3_64_intdigest(w.encode()) for w in ("the", "quick", "brown", "füchse")], 2)


@given(st.lists(st.integers(0, MASK), max_size=40), st.integers(1, 50))
def test_runs_against_plain_python(hashes: list[int], length: int) -> None:
    assert run_hashes(np.array(hashes, np.uint64), length).tolist() == plain_runs(hashes, length)


@pytest.mark.parametrize("length", [1, 5, 13])
@pytest.mark.parametrize("size", [65_535, 65_536 + 4, 65_536 + 5, 140_000])
def test_long_texts_are_hashed_in_pieces(size: int, length: int) -> None:
    words = mix(np.arange(size, dtype=np.uint64))
    runs = run_hashes(words, length)
    assert runs.size == size - length + 1
    some = [0, 1, 65_535 - length, size - length, size // 2]
    assert [runs[i] for i in some] == [plain_runs(words[i : i + length].tolist(), length)[0] for i in some]


def test_order_counts_in_runs() -> None:
    words = word_hashes("a b c d e f g h")
    orders = [run_hashes(np.array(p, np.uint64), 5)[0] for p in itertools.permutations(words[:5].tolist())]
    assert len(set(orders)) == 120


def test_mix_is_the_finaliser_of_splitmix64() -> None:
    values = [0, 1, 2, 0x9E3779B97F4A7C15, MASK]
    assert mix(np.array(values, np.uint64)).tolist() == [plain_mix(v) for v in values]
    # The first output of splitmix64 seeded with 0, from its reference implementation.
    assert plain_mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF
