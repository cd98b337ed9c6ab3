"""Exact and near-duplicates over all units. A document's number counts over all units; of several, the first stays.

`First` means: evaluation splits that a source names come before training, then the order of sources and rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.data.documents import TextAt, read_array
from orchestrator.data.refine.minhash import band_keys, choose_bands, has_shingles, shingle_set
from orchestrator.data.refine.near import bucket_pairs, merge_pairs, removed_by, verify
from orchestrator.data.work import Work
from orchestrator.job_data import Near

Numbers = npt.NDArray[np.int64]
_PARTITION_DOCUMENTS = 4_000_000
"""Documents that one task compares at once: 64 MB of digests."""
_VERIFY_PAIRS = 20_000


@dataclass(frozen=True)
class Removals:
    """Which documents go, and which stay in their place."""

    removed: Numbers
    """Sorted."""
    kept: Numbers
    """Of each removed one."""

    @staticmethod
    def none() -> Removals:
        """No duplicates."""
        return Removals(np.empty(0, np.int64), np.empty(0, np.int64))

    def between(self, first: int, last: int) -> dict[int, int]:
        """removed -> kept, of the numbers in [first, last)."""
        a, b = np.searchsorted(self.removed, [first, last])
        return dict(zip(self.removed[a:b].tolist(), self.kept[a:b].tolist(), strict=True))

    def save(self, path: Path) -> None:
        """Write it beside the work."""
        np.save(path, np.stack([self.removed, self.kept]), allow_pickle=False)

    @staticmethod
    def load(path: Path) -> Removals:
        """Read it back."""
        both = np.load(path, allow_pickle=False)
        return Removals(both[0], both[1])


def find_exact(work: Work, folders: Sequence[Path], counts: Sequence[int]) -> Removals:
    """Documents with the digest of one before them."""
    partitions = max(1, -(-sum(counts) // _PARTITION_DOCUMENTS))
    inputs = [(list(folders), partition, partitions) for partition in range(partitions)]
    work.run("exact duplicates", _exact_partition, inputs)
    return _collect(work, "exact duplicates", partitions)


def _exact_partition(folder: Path, folders: list[Path], partition: int, partitions: int) -> dict[str, Any]:
    """One share of all digests, chosen by their first bits."""
    high, low, ranks, numbers = [], [], [], []
    start = 0
    for unit in folders:
        digests = read_array(unit, "digests")
        halves = np.ascontiguousarray(digests).view(">u8") if len(digests) else np.empty((0, 2), np.uint64)
        chosen = np.flatnonzero(halves[:, 0] % np.uint64(partitions) == partition)
        high.append(halves[chosen, 0])
        low.append(halves[chosen, 1])
        ranks.append(_ranks(unit)[chosen])
        numbers.append(chosen + start)
        start += len(digests)
    a, b, rank, number = (np.concatenate(x) for x in (high, low, ranks, numbers))
    order = np.lexsort((number, rank, b, a))
    a, b, number = a[order], b[order], number[order]
    same = np.zeros(len(a), dtype=bool)
    same[1:] = (a[1:] == a[:-1]) & (b[1:] == b[:-1])
    first = np.maximum.accumulate(np.where(same, 0, np.arange(len(a))))
    _save(folder, number[same], number[first[same]])
    return {"removed": int(same.sum())}


def _ranks(unit: Path) -> npt.NDArray[np.uint8]:
    """Test before validation before all else."""
    return np.minimum(read_array(unit, "splits"), 2)


def find_near(work: Work, folders: Sequence[Path], counts: Sequence[int], *, near: Near, gone: Removals) -> Removals:
    """Documents whose shingles are those of a document before them, up to `near.similarity`; `gone` are out already."""
    if sum(counts) - len(gone.removed) < 2:
        return Removals.none()
    gone_path = work.folder / "exact.npy"
    gone.save(gone_path)
    bands, rows = choose_bands(near.similarity)
    partitions = max(1, -(-sum(counts) // _PARTITION_DOCUMENTS))
    inputs = [(list(folders), gone_path, rows, b, p, partitions) for b in range(bands) for p in range(partitions)]
    work.run("near duplicates: candidates", _band, inputs)
    found = [np.load(work.unit("near duplicates: candidates", i) / "pairs.npy") for i in range(len(inputs))]
    pairs = merge_pairs(found)
    if not len(pairs):
        return Removals.none()
    np.save(work.folder / "pairs.npy", pairs)
    cuts = range(0, len(pairs), _VERIFY_PAIRS)
    work.run("near duplicates: compare", _compare, [(list(folders), list(counts), near, work.folder, c) for c in cuts])
    true = np.concatenate([np.load(work.unit("near duplicates: compare", i) / "true.npy") for i in range(len(cuts))])
    ranks = np.concatenate([_ranks(folder) for folder in folders])
    removed, kept = removed_by(pairs[true], ahead=np.flatnonzero(ranks < 2))
    return Removals(removed, kept)


def _band(
    folder: Path, folders: list[Path], gone: Path, rows: int, band: int, partition: int, partitions: int
) -> dict[str, Any]:
    """Candidates of one band: documents whose signatures agree in it."""
    keys, numbers, ahead = [], [], []
    start = 0
    out = Removals.load(gone).removed
    for unit in folders:
        signatures = read_array(unit, "signatures")
        number = np.arange(start, start + len(signatures))
        of_band = signatures[:, band * rows : (band + 1) * rows]
        own = band_keys(of_band, 1, rows)[:, 0]
        a, b = np.searchsorted(out, [start, start + len(signatures)])
        stays = has_shingles(of_band) & (own % np.uint64(partitions) == partition)
        stays[out[a:b] - start] = False
        keys.append(own[stays])
        numbers.append(number[stays])
        ahead.append(number[_ranks(unit) < 2])
        start += len(signatures)
    pairs = bucket_pairs(np.concatenate(keys), np.concatenate(numbers), ahead=np.concatenate(ahead))
    np.save(folder / "pairs.npy", pairs)
    return {"pairs": len(pairs)}


def _compare(
    folder: Path, folders: list[Path], counts: list[int], near: Near, work: Path, first: int
) -> dict[str, Any]:
    """Compare candidates by their texts."""
    pairs = np.load(work / "pairs.npy", mmap_mode="r")[first : first + _VERIFY_PAIRS]
    text_at = TextAt(folders, counts)

    def shingles_of(number: int) -> npt.NDArray[np.uint64]:
        return shingle_set(text_at(number), near.shingle_words)

    true = verify(pairs, shingles_of, near.similarity)
    np.save(folder / "true.npy", true)
    return {"pairs": len(true), "true": int(true.sum())}


def _save(folder: Path, removed: Numbers, kept: Numbers) -> None:
    order = np.argsort(removed, kind="stable")
    Removals(removed[order].astype(np.int64), kept[order].astype(np.int64)).save(folder / "removals.npy")


def _collect(work: Work, name: str, units: int) -> Removals:
    parts = [Removals.load(work.unit(name, i) / "removals.npy") for i in range(units)]
    removed, kept = np.concatenate([p.removed for p in parts]), np.concatenate([p.kept for p in parts])
    order = np.argsort(removed, kind="stable")
    return Removals(removed[order], kept[order])
