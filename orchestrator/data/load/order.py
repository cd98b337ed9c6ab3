"""The order of samples: a keyed permutation computed on demand, and how a step's samples are dealt to ranks. Pure.

O(1) memory and O(1) time a sample at any dataset size: a Feistel network over the smallest even number of bits that
holds the sample indices, with cycle walking for the indices above (Black and Rogaway 2002, "Ciphers with Arbitrary
Finite Domains"). The order is a function of (seed, epoch) alone, never of the world size.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
_ROUNDS = 6
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class SampleOrder:
    """All samples once an epoch, each epoch in another order, without end.

    Args:
        num_samples: samples in an epoch, at least 1.
        seed: two seeds give two unrelated orders.
    """

    num_samples: int
    seed: int

    def at(self, positions: Indices) -> Indices:
        """Sample indices at positions 0, 1, 2, ... of the endless sequence of epochs; any shape."""
        epochs, within = np.divmod(np.asarray(positions, dtype=np.int64), self.num_samples)
        result = np.empty_like(within)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            result[chosen] = permute(within[chosen], self.num_samples, self.seed, int(epoch))
        return result


def permute(indices: Indices, size: int, seed: int, epoch: int) -> Indices:
    """The image of each index in 0..size-1 under the permutation keyed by (seed, epoch)."""
    half_bits = max(1, -(-max(1, (size - 1).bit_length()) // 2))
    keys = _round_keys(seed, epoch)
    values = _feistel(np.asarray(indices).astype(np.uint64), half_bits, keys)
    # Cycle walking: at most 4 values in the domain for each index, so a few turns on average.
    while (outside := values >= np.uint64(size)).any():
        values[outside] = _feistel(values[outside], half_bits, keys)
    return values.astype(np.int64)


def deal(num_samples: int, rank: int, num_ranks: int) -> tuple[int, int]:
    """The contiguous, nearly equal share [first, last) of a step's samples that a rank works on."""
    return num_samples * rank // num_ranks, num_samples * (rank + 1) // num_ranks


def micro_batches(first: int, last: int, count: int) -> list[tuple[int, int]]:
    """Cut a share into `count` contiguous, nearly equal micro-batches; one is empty where samples run short.

    Every rank makes the same number, because each forward pass may hold collectives.
    """
    cuts = [first + (last - first) * i // count for i in range(count + 1)]
    return list(itertools.pairwise(cuts))


def _feistel(values: npt.NDArray[np.uint64], half_bits: int, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << shift) | right


def _round_keys(seed: int, epoch: int) -> npt.NDArray[np.uint64]:
    start = _mix(np.array([seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64))
    start = _mix(start ^ np.array([epoch & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64) * _GOLDEN)
    return _mix(start + np.arange(1, _ROUNDS + 1, dtype=np.uint64) * _GOLDEN)


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): each input bit moves half of the output bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
