"""The index of evaluation text, against plain Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.refine.contamination import NgramIndex, SortedHashes
from orchestrator.data.refine.words import split_words
from orchestrator.errors import DataError

WORDS = [f"word{i}" for i in range(16)]
TEXTS = st.lists(st.sampled_from("ab"), max_size=18).map(" ".join)


def plain_contains(evaluation: list[str], text: str, n: int) -> bool:
    words = split_words(text)
    for one in map(split_words, evaluation):
        if not one:
            continue
        if len(one) < min(8, n):
            if one == words:
                return True
            continue
        length = min(len(one), n)
        runs = {tuple(one[i : i + length]) for i in range(len(one) - length + 1)}
        if any(tuple(words[i : i + length]) in runs for i in range(len(words) - length + 1)):
            return True
    return False


@given(st.lists(TEXTS, max_size=4), st.lists(TEXTS, max_size=6), st.sampled_from([1, 3, 8, 10, 13]))
def test_against_plain_python(evaluation: list[str], texts: list[str], n: int) -> None:
    index = NgramIndex.build(evaluation, n)
    assert [index.contains(text) for text in texts] == [plain_contains(evaluation, text, n) for text in texts]


@pytest.mark.parametrize(
    ("evaluation", "text", "found"),
    [
        (16, WORDS[1:14], True),
        (16, WORDS[1:13], False),
        (16, ["x", *WORDS[2:15], "y"], True),
        (16, [*WORDS[:7], "x", *WORDS[7:]], False),
        (9, ["x", *WORDS[:9], "y"], True),
        (9, WORDS[:8], False),
        (8, ["x", *WORDS[:8]], True),
        (7, WORDS[:7], True),
        (7, ["x", *WORDS[:7]], False),
        (1, WORDS[:1], True),
        (0, [], False),
    ],
)
def test_runs_of_13_down_to_8_and_short_ones_whole(evaluation: int, text: list[str], found: bool) -> None:
    index = NgramIndex.build([" ".join(WORDS[:evaluation])], 13)
    assert index.contains(" ".join(text)) is found
    assert index.contains(f"({', '.join(text).upper()})!") is found


@given(st.lists(TEXTS, max_size=5), st.lists(TEXTS, max_size=5))
def test_saved_and_mapped_it_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, evaluation: list[str], texts: list[str]
) -> None:
    path = tmp_path_factory.mktemp("index") / "evaluation"
    built = NgramIndex.build(evaluation, 10)
    built.save(path)
    loaded = NgramIndex.load(path)
    assert (loaded.ngram_words, len(loaded), set(loaded.runs)) == (10, len(built), set(built.runs))
    assert [loaded.contains(text) for text in texts] == [built.contains(text) for text in texts]


def test_a_loaded_index_is_mapped_not_read(tmp_path: Path) -> None:
    NgramIndex.build([" ".join(WORDS)], 13).save(tmp_path / "index.npy")
    hashes = NgramIndex.load(tmp_path / "index.npy").runs[13].hashes
    assert isinstance(hashes, np.memmap)
    assert len(hashes) == 4


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (np.zeros(4), "an array of float64"),
        (np.zeros(0, np.uint64), "out of bounds"),
        (np.array([2, 13, 0], np.uint64), "format 2, not 1"),
        (np.array([1, 13, 2, 0, 5, 13], np.uint64), "shorter"),
        (np.array([1, 13, 1, 0, 5, 7], np.uint64), "6 numbers, where its head says 10"),
        (np.array([1, 13, 0], np.uint64), "3 numbers"),
        (np.array([{}], object), "object"),
        (b"", "magic|EOF|header"),
        (b"text, not numbers", "magic string"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: np.ndarray | bytes, reason: str) -> None:
    path = tmp_path / "index.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(DataError, match=reason) as error:
        NgramIndex.load(path)
    assert str(path) in error.value.message
    assert "delete it" in str(error.value.fix)


@pytest.mark.parametrize("size", [0, 1, 5, 1000])
def test_a_set_of_hashes_has_what_it_holds_and_nothing_else(size: int) -> None:
    rng = np.random.default_rng(size)
    hashes = np.unique(rng.integers(0, 2**64, size, dtype=np.uint64))
    extremes = np.array([0, 1, 2**63, 2**64 - 1], np.uint64)
    one = SortedHashes(hashes)
    assert all(one.has_any(np.concatenate((extremes, hashes[i : i + 1]))) for i in range(0, hashes.size, 50))
    assert not one.has_any(np.setdiff1d(np.concatenate((extremes, hashes + np.uint64(1))), hashes))
    assert not one.has_any(np.empty(0, np.uint64))
    if size:
        edges = SortedHashes(extremes)
        assert all(edges.has_any(np.array([e], np.uint64)) for e in extremes.tolist())
