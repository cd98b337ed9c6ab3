"""Near-duplicates: which documents meet in a band, which of them are alike, and which go. Pure, for any partition.

The steps, and how they are spread over tasks:

1. `bucket_pairs`, for each band, or any range of a band's keys: a bucket must be whole in one task, nothing else.
2. `merge_pairs`, of all bands: each pair once.
3. `verify`, for any part of the pairs: the exact Jaccard similarity of the two sets of shingles. So what is found is
   certain, and only what is missed depends on chance (`minhash.choose_bands`).
4. `removed_by`, once for all verified pairs.

No step looks at how the work was dealt out, so the result is the same on 1 node and on 64.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from orchestrator.data.refine.words import Hashes

Documents = npt.NDArray[np.int64]
"""Global indices of documents."""
Pairs = npt.NDArray[np.int64]
"""[P, 2], the smaller index first, sorted, each pair once."""

FIRSTS = 4
BEFORE = 4
"""In a bucket, each document is compared with its first 4 and with the 4 before it.

So a bucket of up to 9 documents is compared completely, and one of n costs 8 n comparisons, not n^2 / 2. Larger ones
hold copies of one text, or documents that share much boilerplate. Copies lose nothing: all meet the first, which is
what `removed_by` keeps. In boilerplate a band's pairs are lost, but similar documents meet again in other bands, whose
rows fall on what only they share. Measured on 3,000 documents of 1,000 groups of copies at a similarity just above
0.8, three quarters of each document the same for all, buckets up to 950: 99.8 % of the documents go that go when all
pairs of all buckets are compared, with 68 thousand comparisons for 2.1 million. Of this the first ones matter most:
with 30 large groups, comparing with the 16 before alone finds 96.5 %.
"""
_CACHE_BYTES = 256 << 20
_BATCH_SHINGLES = 1 << 18
_SLACK = 1e-9
"""Shares such as 0.7 have no exact float: so much may the count of shared shingles fall short."""


def bucket_pairs(keys: Hashes, documents: Documents, *, ahead: Documents | None = None) -> Pairs:
    """The candidates of one band: pairs of documents whose keys are equal; of a large bucket not all (`FIRSTS`).

    Args:
        keys: [N], the band's key of each document.
        documents: [N], distinct, in any order.
        ahead: as for `removed_by`, and the same: the first of a bucket must be those that would stay. Of many copies of
            an evaluation document at the end of the sources, most would not be compared with it otherwise.
    """
    order = np.lexsort((documents, _behind(documents, ahead), keys))
    keys, documents = keys[order], documents[order]
    if not keys.size:
        return _no_pairs()
    opens = np.concatenate(([True], keys[1:] != keys[:-1]))
    place = np.arange(keys.size)
    start = np.maximum.accumulate(np.where(opens, place, 0))
    rank = place - start
    later = [np.flatnonzero(rank >= back) for back in range(1, BEFORE + 1)]
    earlier = [at - back for back, at in enumerate(later, start=1)]
    for first in range(FIRSTS):
        at = np.flatnonzero(rank > first + BEFORE)  # nearer ones are among those before
        later.append(at)
        earlier.append(start[at] + first)
    found = np.stack((documents[np.concatenate(earlier)], documents[np.concatenate(later)]), axis=1)
    return _sorted(np.sort(found, axis=1))


def merge_pairs(parts: Iterable[Pairs]) -> Pairs:
    """The pairs of several bands or tasks, each once."""
    merged = _sorted(np.concatenate([_no_pairs(), *parts]))
    if not len(merged):
        return merged
    new = np.concatenate(([True], (merged[1:] != merged[:-1]).any(axis=1)))
    return merged[new]


def verify(
    pairs: Pairs,
    shingles_of: Callable[[int], Hashes],
    similarity: float,
    *,
    cache_bytes: int = _CACHE_BYTES,
) -> npt.NDArray[np.bool_]:
    """Whether each pair's Jaccard similarity, shared shingles over all shingles, is at least `similarity`.

    Args:
        pairs: [P, 2], in any order; sorted ones make the best of the cache.
        shingles_of: a document's set (`minhash.shingle_set`): sorted, each shingle once. A document without shingles is
            similar to nothing. Asked again when a set has left the cache.
        similarity: above 0, up to 1.
        cache_bytes: sets to keep, at most (and the ones in hand).
    """
    alike = np.zeros(len(pairs), np.bool_)
    if not len(pairs):
        return alike
    sets = _Cache(shingles_of, cache_bytes)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    firsts, seconds = pairs[order, 0], pairs[order, 1]
    cuts = np.flatnonzero(firsts[1:] != firsts[:-1]) + 1
    for begin, end in zip([0, *cuts.tolist()], [*cuts.tolist(), len(pairs)], strict=True):
        base, at = sets.get(int(firsts[begin])), begin
        for batch in _batches(sets.get(int(second)) for second in seconds[begin:end]):
            alike[order[at : at + len(batch)]] = _alike(base, batch, similarity)
            at += len(batch)
    return alike


def removed_by(pairs: Pairs, *, ahead: Documents | None = None) -> tuple[Documents, Documents]:
    """Of verified pairs: the documents that go, sorted, and for each the one that stays in its place.

    Documents are taken in order; one goes if it is similar to an earlier one that stays, to the earliest such. So no
    two that stay were found similar, and each that goes has a similar one that stays. To keep one document of each
    connected component instead removes the end of a chain a-b-c although it may resemble nothing that is left: of
    4,994 mails of Enron at 0.8, 241 would go, 6 of them only so (similarity to what stays down to 0.51); here 235 go.

    Args:
        pairs: [P, 2], verified, in any order.
        ahead: documents that come before all others, such as those of evaluation splits; else the index is the order.
    """
    firsts, seconds = (pairs.min(axis=1), pairs.max(axis=1)) if len(pairs) else (pairs[:, 0], pairs[:, 1])
    behind_first, behind_second = _behind(firsts, ahead), _behind(seconds, ahead)
    swap = behind_first & ~behind_second
    earlier, later = np.where(swap, seconds, firsts), np.where(swap, firsts, seconds)
    order = np.lexsort((earlier, behind_first & behind_second, later, behind_first | behind_second))
    kept_for: dict[int, int] = {}
    for one, other in zip(earlier[order].tolist(), later[order].tolist(), strict=True):
        # All pairs in which `one` is the later have been seen: whether it stays is settled.
        if other not in kept_for and one not in kept_for:
            kept_for[other] = one
    removed = np.array(sorted(kept_for), np.int64)
    return removed, np.array([kept_for[document] for document in removed.tolist()], np.int64)


def _behind(documents: Documents, ahead: Documents | None) -> npt.NDArray[np.bool_]:
    """Whether each document is none of those that come before all others."""
    return np.ones(documents.shape, np.bool_) if ahead is None else np.isin(documents, ahead, invert=True)


def _alike(base: Hashes, others: Sequence[Hashes], similarity: float) -> npt.NDArray[np.bool_]:
    sizes = np.array([other.size for other in others], np.int64)
    # The smaller set over the larger is the most that two can share: most false candidates end here.
    possible = np.minimum(sizes, base.size) >= similarity * np.maximum(sizes, base.size) - _SLACK
    possible &= (sizes > 0) & (base.size > 0)
    alike = np.zeros(len(others), np.bool_)
    chosen = np.flatnonzero(possible)
    if not chosen.size:
        return alike
    sizes = sizes[chosen]
    joined = np.concatenate([others[i] for i in chosen.tolist()])
    at = np.searchsorted(base, joined)
    at[at == base.size] = 0
    ends = np.cumsum(sizes)
    shared = np.add.reduceat(base[at] == joined, ends - sizes, dtype=np.int64)
    alike[chosen] = shared >= similarity * (base.size + sizes - shared) - _SLACK
    return alike


def _batches(sets: Iterator[Hashes]) -> Iterator[list[Hashes]]:
    """Lists of sets, each of at most so many shingles in all, or of one set."""
    batch: list[Hashes] = []
    size = 0
    for one in sets:
        if batch and size + one.size > _BATCH_SHINGLES:
            yield batch
            batch, size = [], 0
        batch.append(one)
        size += one.size
    if batch:
        yield batch


class _Cache:
    """The sets of the documents that were asked for last."""

    def __init__(self, read: Callable[[int], Hashes], limit_bytes: int) -> None:
        self._read, self._limit_bytes, self._held_bytes = read, limit_bytes, 0
        self._sets: OrderedDict[int, Hashes] = OrderedDict()

    def get(self, document: int) -> Hashes:
        known = self._sets.get(document)
        if known is not None:
            self._sets.move_to_end(document)
            return known
        shingles = self._sets[document] = self._read(document)
        self._held_bytes += shingles.nbytes
        while self._held_bytes > self._limit_bytes and len(self._sets) > 1:
            self._held_bytes -= self._sets.popitem(last=False)[1].nbytes
        return shingles


def _sorted(pairs: Pairs) -> Pairs:
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def _no_pairs() -> Pairs:
    return np.empty((0, 2), np.int64)
