"""Candidates, exact verification and what goes, against plain Python, and the whole against datasketch."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.refine.minhash import band_keys, choose_bands, has_shingles, shingle_set, signature
from orchestrator.data.refine.near import BEFORE, FIRSTS, Pairs, bucket_pairs, merge_pairs, removed_by, verify
from orchestrator.data.refine.words import Hashes

EDGES = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)).filter(lambda p: p[0] != p[1]), max_size=40)


def as_pairs(edges: list[tuple[int, int]]) -> Pairs:
    return np.array(sorted({(min(e), max(e)) for e in edges}), np.int64).reshape(-1, 2)


def near_duplicates(texts: list[str], similarity: float) -> tuple[Pairs, dict[int, int]]:
    """The whole way from texts to what goes."""
    sets = [shingle_set(text, 5) for text in texts]
    signatures = np.stack([signature(text, shingle_words=5) for text in texts])
    documents = np.flatnonzero(has_shingles(signatures))
    bands, rows = choose_bands(similarity)
    keys = band_keys(signatures[documents], bands, rows)
    candidates = merge_pairs(bucket_pairs(keys[:, band], documents) for band in range(bands))
    pairs = candidates[verify(candidates, sets.__getitem__, similarity)]
    removed, kept = removed_by(pairs)
    return pairs, dict(zip(removed.tolist(), kept.tolist(), strict=True))


def zipf_texts(rng: np.random.Generator, count: int, length: int = 120) -> list[list[str]]:
    words = np.minimum(rng.zipf(1.3, (count, length)), 30_000)
    return [[f"w{word}" for word in row] for row in words.tolist()]


def edited(rng: np.random.Generator, words: list[str], edits: int) -> list[str]:
    copy = list(words)
    for at in rng.integers(0, len(copy), edits).tolist():
        copy[at] = f"new{rng.integers(1 << 30)}"
    return copy


@given(st.lists(st.integers(0, 6), max_size=60), st.randoms(), st.integers(0, 5))
def test_candidates_against_plain_python(keys: list[int], random, num_ahead: int) -> None:
    """Of each bucket, in order: each document with the first ones and with the ones before it."""
    documents = random.sample(range(1000), len(keys))
    ahead = documents[:num_ahead]
    expected = set()
    for key in set(keys):
        members = (d for d, k in zip(documents, keys, strict=True) if k == key)
        bucket = sorted(members, key=lambda d: (d not in ahead, d))
        for place, document in enumerate(bucket):
            partners = bucket[max(0, place - BEFORE) : place] + bucket[: min(place, FIRSTS)]
            expected |= {(min(other, document), max(other, document)) for other in partners}
    numbers = np.array(documents, np.int64)
    found = bucket_pairs(np.array(keys, np.uint64), numbers, ahead=numbers[:num_ahead] if num_ahead else None)
    assert found.dtype == np.int64
    assert [tuple(pair) for pair in found.tolist()] == sorted(expected)


def test_small_buckets_are_compared_completely_and_large_ones_in_linear_time() -> None:
    small = FIRSTS + BEFORE + 1
    assert len(bucket_pairs(np.zeros(small, np.uint64), np.arange(small))) == small * (small - 1) // 2
    assert len(bucket_pairs(np.zeros(5000, np.uint64), np.arange(5000))) < 5000 * (FIRSTS + BEFORE)


def test_twenty_thousand_copies_take_no_time_to_speak_of() -> None:
    shingles = np.sort(np.random.default_rng(0).integers(0, 2**64, 60, dtype=np.uint64))
    began_at = time.process_time()
    pairs = bucket_pairs(np.full(20_000, 7, np.uint64), np.arange(20_000))
    alike = verify(pairs, lambda _: shingles, 0.8)
    removed, kept = removed_by(pairs[alike])
    assert time.process_time() - began_at < 4.0  # quadratic: minutes
    assert removed.tolist() == list(range(1, 20_000))
    assert set(kept.tolist()) == {0}


@given(
    st.lists(st.lists(st.integers(0, 11), max_size=12), min_size=2, max_size=8), st.sampled_from([0.3, 0.7, 0.8, 1.0])
)
def test_verification_is_exact(documents: list[list[int]], similarity: float) -> None:
    sets = [np.unique(np.array(d, np.uint64)) for d in documents]
    pairs = as_pairs(list(itertools.combinations(range(len(sets)), 2)))[::-1]  # any order is fine
    expected = []
    for one, other in pairs.tolist():
        shared, union = set(documents[one]) & set(documents[other]), set(documents[one]) | set(documents[other])
        expected.append(bool(union) and 10 * len(shared) >= round(10 * similarity) * len(union))
    assert verify(pairs, sets.__getitem__, similarity).tolist() == expected
    assert verify(pairs, sets.__getitem__, similarity, cache_bytes=0).tolist() == expected


def test_the_cache_is_bounded_and_large_sets_come_in_batches() -> None:
    rng = np.random.default_rng(1)
    base = np.unique(rng.integers(0, 2**64, 120_000, dtype=np.uint64))
    sets = [base, base[:100_000], base[:90_000], base[20_000:], base[:95_999], base[:96_001]]
    reads: list[int] = []

    def read(document: int) -> Hashes:
        reads.append(document)
        return sets[document]

    pairs = as_pairs([(0, i) for i in range(1, 6)])
    assert verify(pairs, read, 0.8).tolist() == [True, False, True, False, True]
    assert sorted(reads) == list(range(6))  # each once: all fit
    reads.clear()
    verify(as_pairs([(0, 1), (0, 2), (1, 2)]), read, 0.8, cache_bytes=base.nbytes)
    assert len(reads) > 3


@pytest.mark.parametrize(("changed", "found"), [(0, True), (2, True), (5, False)])
def test_only_what_is_as_similar_as_asked_goes(changed: int, found: bool) -> None:
    """100 words, 96 shingles; each word changed far from others costs 5: 2 leave 86/106 = 0.81, 5 leave 71/121."""
    words = [f"word{i}" for i in range(100)]
    copy = [f"other{i}" if i % 20 == 10 and i // 20 < changed else word for i, word in enumerate(words)]
    _, gone = near_duplicates([" ".join(words), " ".join(copy)], 0.8)
    assert gone == ({1: 0} if found else {})


def test_case_and_punctuation_make_no_difference() -> None:
    text = "The quick brown fox jumps over the lazy dog, and the dog does not mind at all."
    texts = [text, text.upper(), f"“{text.replace(',', ' --')}”", "?!", "...", "quite another text than the ones above"]
    assert near_duplicates(texts, 1.0)[1] == {1: 0, 2: 0}


@given(EDGES, st.sets(st.integers(0, 12)))
def test_what_goes_against_plain_python(edges: list[tuple[int, int]], ahead: set[int]) -> None:
    pairs = as_pairs(edges)
    order = sorted(range(13), key=lambda d: (d not in ahead, d))
    stays: list[int] = []
    expected = {}
    for document in order:
        similar = [s for s in stays if tuple(sorted((s, document))) in set(map(tuple, pairs.tolist()))]
        if similar:
            expected[document] = similar[0]
        else:
            stays.append(document)
    shuffled = np.random.default_rng(len(edges)).permutation(pairs)
    removed, kept = removed_by(shuffled, ahead=np.array(sorted(ahead), np.int64))
    assert dict(zip(removed.tolist(), kept.tolist(), strict=True)) == expected
    assert removed.tolist() == sorted(expected)


@pytest.mark.parametrize(
    ("edges", "ahead", "gone"),
    [
        ([], [], {}),
        ([(0, 1), (1, 2)], [], {1: 0}),
        ([(0, 1), (0, 2), (1, 2)], [], {1: 0, 2: 0}),
        ([(0, 2), (1, 2)], [], {2: 0}),
        ([(0, 1), (1, 2)], [2], {1: 2}),
        ([(0, 1), (0, 2)], [2], {0: 2}),
        ([(0, 5), (3, 5)], [5, 3], {5: 3}),
    ],
)
def test_who_stays(edges: list[tuple[int, int]], ahead: list[int], gone: dict[int, int]) -> None:
    removed, kept = removed_by(as_pairs(edges), ahead=np.array(ahead, np.int64) if ahead else None)
    assert dict(zip(removed.tolist(), kept.tolist(), strict=True)) == gone


def test_the_result_does_not_depend_on_how_the_work_is_dealt_out() -> None:
    """Bands and ranges of keys to tasks, documents in any order, pairs in any parts: the same pairs and result."""
    rng = np.random.default_rng(4)
    keys = rng.integers(0, 40, (300, 6), dtype=np.uint64)
    documents = np.arange(300) * 7
    sets = [np.unique(rng.integers(0, 12, 10).astype(np.uint64)) for _ in range(300)]
    whole = merge_pairs(bucket_pairs(keys[:, band], documents) for band in range(6))
    alike = verify(whole, lambda d: sets[d // 7], 0.6)
    result = removed_by(whole[alike])
    assert 0 < len(result[0]) < 300
    for parts in (2, 3, 5):
        order = rng.permutation(300)
        tasks = list(itertools.product(range(6), range(parts)))
        rng.shuffle(tasks)
        found = []
        for band, part in tasks:
            own = order[keys[order, band] % parts == part]
            found.append(bucket_pairs(keys[own, band], documents[own]))
        pairs = merge_pairs(found)
        assert pairs.tolist() == whole.tolist()
        pieces = np.array_split(rng.permutation(pairs), parts)
        verified = [piece[verify(piece, lambda d: sets[d // 7], 0.6)] for piece in pieces]
        again = removed_by(np.concatenate(verified))
        assert [a.tolist() for a in again] == [r.tolist() for r in result]


def test_finds_what_datasketch_finds() -> None:
    """2,000 documents, a third of them copies with up to 8 of 120 words changed: true pairs, beside a peer."""
    datasketch = pytest.importorskip("datasketch")
    rng = np.random.default_rng(6)
    originals = zipf_texts(rng, 1400)
    copies = [edited(rng, originals[rng.integers(1400)], int(rng.integers(0, 9))) for _ in range(600)]
    texts = [" ".join(words) for words in originals + copies]
    ours = {tuple(pair) for pair in near_duplicates(texts, 0.8)[0].tolist()}

    sets = [shingle_set(text, 5) for text in texts]
    peer = datasketch.MinHashLSH(threshold=0.8, num_perm=128)
    theirs = set()
    for i, shingles in enumerate(sets):
        sketch = datasketch.MinHash(num_perm=128, hashfunc=int, seed=3)
        sketch.update_batch((shingles & np.uint64(0xFFFFFFFF)).tolist())
        theirs |= {(j, i) for j in peer.query(sketch)}
        peer.insert(i, sketch)
    plain = [set(shingles.tolist()) for shingles in sets]
    theirs_true = {(i, j) for i, j in theirs if 5 * len(plain[i] & plain[j]) >= 4 * len(plain[i] | plain[j])}
    assert len(theirs_true) > 200
    assert len(theirs_true - ours) <= 0.01 * len(theirs_true)
    assert len(ours) >= len(theirs_true)


def test_no_pairs_and_no_documents() -> None:
    assert bucket_pairs(np.empty(0, np.uint64), np.empty(0, np.int64)).shape == (0, 2)
    assert bucket_pairs(np.arange(5, dtype=np.uint64), np.arange(5)).shape == (0, 2)
    assert merge_pairs([]).shape == (0, 2)
    assert verify(np.empty((0, 2), np.int64), lambda _: pytest.fail("nothing to read"), 0.8).shape == (0,)
