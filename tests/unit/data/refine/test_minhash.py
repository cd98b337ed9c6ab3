"""Shingles, signatures and bands, against plain Python, theory and datasketch."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.refine.minhash import (
    NUM_VALUES,
    band_keys,
    choose_bands,
    estimate,
    has_shingles,
    meeting_probability,
    shingle_set,
    signature,
    signature_of,
)
from orchestrator.data.refine.words import Hashes, split_words

TEXTS = st.lists(st.sampled_from(["a", "b", "c", "dd", "É", "漢", ".", "e"]), max_size=30).map(" ".join)


def plain_shingles(text: str, k: int) -> set[tuple[str, ...]]:
    words = split_words(text)
    if len(words) < k:
        return {tuple(words)} if words else set()
    return {tuple(words[i : i + k]) for i in range(len(words) - k + 1)}


def two_sets(rng: np.random.Generator, shared: int, own: int) -> tuple[Hashes, Hashes]:
    """Two sets of random hashes of known similarity: shared / (shared + 2 own)."""
    values = rng.integers(0, 2**64, shared + 2 * own, dtype=np.uint64)
    return np.sort(values[: shared + own]), np.sort(np.concatenate((values[:shared], values[shared + own :])))


@given(TEXTS, TEXTS, st.integers(1, 7))
def test_sets_of_shingles_against_plain_python(one: str, other: str, k: int) -> None:
    """As many, and as many in common: so the Jaccard similarity is the same number."""
    plain_one, plain_other = plain_shingles(one, k), plain_shingles(other, k)
    ours_one, ours_other = shingle_set(one, k), shingle_set(other, k)
    assert (ours_one.size, ours_other.size) == (len(plain_one), len(plain_other))
    assert np.intersect1d(ours_one, ours_other).size == len(plain_one & plain_other)
    assert (np.diff(ours_one) > 0).all()


@given(TEXTS.filter(lambda text: bool(split_words(text))), st.integers(1, 7))
def test_a_signature_is_of_the_set(text: str, k: int) -> None:
    """Neither order nor repetition counts, and the functions are `high + a_i * low` modulo 2^32."""
    shingles = shingle_set(text, k)
    ours = signature(text, shingle_words=k)
    assert ours.shape == (NUM_VALUES,)
    assert (signature_of(np.concatenate((shingles[::-1], shingles))) == ours).all()
    functions = [signature_of(np.array([1], np.uint64))[i].item() for i in range(NUM_VALUES)]  # high 0, low 1: a_i
    assert len(set(functions)) == NUM_VALUES
    assert all(a % 2 for a in functions)
    plain = [min(((s >> 32) + a * (s & 0xFFFFFFFF)) % 2**32 for s in shingles.tolist()) for a in functions]
    assert ours.tolist() == plain


def test_long_documents_are_signed_in_pieces() -> None:
    shingles = np.random.default_rng(0).integers(0, 2**64, 5000, dtype=np.uint64)
    parts = [signature_of(shingles[at : at + 700]) for at in range(0, 5000, 700)]
    assert (signature_of(shingles) == np.minimum.reduce(parts)).all()


def test_texts_without_words_have_no_signature() -> None:
    rows = np.stack([signature(text, shingle_words=5) for text in ("", " ... ", "a", "a b c d e f")])
    assert has_shingles(rows).tolist() == [False, False, True, True]


@pytest.mark.parametrize(("shared", "own"), [(8, 1), (40, 5), (160, 20), (160, 80), (60, 70), (2000, 250)])
def test_the_estimate_is_as_good_as_theory_says(shared: int, own: int) -> None:
    """Unbiased, with a standard error of sqrt(s(1-s)/128), for short and long documents."""
    rng = np.random.default_rng(shared)
    pairs = [two_sets(rng, shared, own) for _ in range(600)]
    found = np.array([estimate(signature_of(one), signature_of(other)) for one, other in pairs])
    true = shared / (shared + 2 * own)
    error = math.sqrt(true * (1 - true) / NUM_VALUES)
    assert abs(found.mean() - true) < 4 * error / math.sqrt(len(found))
    assert found.std() == pytest.approx(error, rel=0.13)  # 4.5 standard errors of a standard deviation


def test_as_good_as_datasketch() -> None:
    datasketch = pytest.importorskip("datasketch")
    rng = np.random.default_rng(5)
    true, ours, theirs = 0.8, [], []
    for _ in range(150):
        one, other = two_sets(rng, 80, 10)
        ours.append(estimate(signature_of(one), signature_of(other)))
        peers = [datasketch.MinHash(NUM_VALUES) for _ in range(2)]
        for peer, shingles in zip(peers, (one, other), strict=True):
            peer.update_batch([h.tobytes() for h in shingles])
        theirs.append(peers[0].jaccard(peers[1]))
    square_errors = [np.mean((np.array(values) - true) ** 2) for values in (ours, theirs)]
    assert square_errors[0] < 1.5 * square_errors[1]


@pytest.mark.parametrize(
    ("similarity", "bands_and_rows"),
    [(1.0, (1, 128)), (0.9, (12, 10)), (0.8, (21, 6)), (0.5, (42, 3)), (0.2, (128, 1)), (0.01, (128, 1))],
)
def test_bands(similarity: float, bands_and_rows: tuple[int, int]) -> None:
    assert choose_bands(similarity) == bands_and_rows


@given(st.floats(0.04, 1.0), st.sampled_from([32, 64, 128]), st.floats(0.5, 0.99))
def test_bands_find_enough_with_as_many_rows_as_can_be(similarity: float, num_values: int, recall: float) -> None:
    bands, rows = choose_bands(similarity, num_values, recall)
    assert bands * rows <= num_values
    if rows > 1:
        assert meeting_probability(similarity, bands=bands, rows=rows) >= recall
    for more in range(rows + 1, num_values + 1):
        assert meeting_probability(similarity, bands=num_values // more, rows=more) < recall


@pytest.mark.parametrize("limit", [0.8, 0.9])
@pytest.mark.parametrize("similarity", [0.8, 0.9])
def test_measured_recall_is_that_of_theory(limit: float, similarity: float) -> None:
    """400 pairs of known similarity: as many meet as the formula says, within four standard errors."""
    bands, rows = choose_bands(limit)
    rng = np.random.default_rng(11)
    own = 10 if similarity == 0.8 else 5
    shared = round(2 * own * similarity / (1 - similarity))
    pairs = [two_sets(rng, shared, own) for _ in range(400)]
    keys = [band_keys(np.stack([signature_of(p[side]) for p in pairs]), bands, rows) for side in (0, 1)]
    met = (keys[0] == keys[1]).any(axis=1).mean()
    expected = meeting_probability(similarity, bands=bands, rows=rows)
    assert abs(met - expected) < 4 * math.sqrt(expected * (1 - expected) / len(pairs)) + 1e-9
    if similarity >= limit:
        assert met >= 0.97


def test_keys_are_equal_where_bands_are() -> None:
    rng = np.random.default_rng(2)
    signatures = rng.integers(0, 3, (300, NUM_VALUES), dtype=np.uint32)
    keys = band_keys(signatures, 40, 3)
    assert keys.shape == (300, 40)
    for band in (0, 17, 39):
        plain = [tuple(row) for row in signatures[:, 3 * band : 3 * band + 3].tolist()]
        assert len({*zip(plain, keys[:, band].tolist(), strict=True)}) == len(set(plain)) == len(set(keys[:, band]))
    constant = band_keys(np.zeros((1, NUM_VALUES), np.uint32), 128, 1)
    assert len(set(constant[0].tolist())) == 128  # bands do not meet each other


def test_bands_beyond_the_signature_are_refused() -> None:
    with pytest.raises(ValueError, match="22 bands of 6 rows need more than 128 values"):
        band_keys(np.zeros((1, 128), np.uint32), 22, 6)
