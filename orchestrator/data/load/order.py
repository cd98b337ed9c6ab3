"""The order of samples: a keyed permutation computed on demand, and how a step's samples are dealt to ranks. Pure.

O(1) memory and O(1) time a sample at any dataset size: a Feistel network over the smallest even number of bits that
holds the sample indices, with cycle walking for the indices above (Black and Rogaway 2002, "Ciphers with Arbitrary
Finite Domains"). The order is a function of (seed, epoch) alone, never of the world size.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from orchestrator.data.load.keyed import GOLDEN, Keys, keys, mix

Indices = npt.NDArray[np.int64]
_ROUNDS = 6
_BLOCK = 32_768


class Order(Protocol):
    """An endless sequence of samples."""

    def at(self, positions: Indices) -> Indices:
        """Sample ids at positions 0, 1, 2, ...: [N] -> [N]."""
        ...


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
        # One key for all is half the work of a key each; a range of positions is most often of one epoch.
        one = epochs.size > 0 and epochs.min() == epochs.max()
        return permute(within, self.num_samples, self.seed, int(epochs.flat[0]) if one else epochs)


def permute(indices: Indices, size: int, seed: int, epoch: int | Indices) -> Indices:
    """The image of each index in 0..size-1 under the permutation keyed by (seed, epoch).

    `epoch` is one for all indices, or one each, in the shape of `indices`.
    """
    shape = np.shape(indices)
    half_bits = max(1, -(-max(1, (size - 1).bit_length()) // 2))
    round_keys = _round_keys(seed, np.ravel(epoch))
    values = _feistel(np.ravel(indices).astype(np.uint64), half_bits, round_keys)
    # Cycle walking: at most 4 values in the domain for each index, so a few turns on average.
    while len(outside := np.flatnonzero(values >= np.uint64(size))):
        own_keys = round_keys if round_keys.shape[1] == 1 else round_keys[:, outside]
        values[outside] = _feistel(values[outside], half_bits, own_keys)
    return values.astype(np.int64).reshape(shape)


class BlockwiseOrder:
    """Ranges of an order, worked out in blocks: what numpy costs a call is shared by thousands of samples.

    Asked for 64 samples at a time, the order alone would cost five times as much as reading them. The two blocks
    that were used last are kept. For one thread.
    """

    def __init__(self, order: Order) -> None:
        self._order = order
        self._blocks: dict[int, Indices] = {}

    def between(self, first: int, last: int) -> Indices:
        """The sample ids at positions [first, last)."""
        blocks = range(first // _BLOCK, -(-last // _BLOCK))
        pieces = [
            self._block(block)[max(0, first - block * _BLOCK) : max(0, last - block * _BLOCK)] for block in blocks
        ]
        return pieces[0] if len(pieces) == 1 else np.concatenate([np.empty(0, dtype=np.int64), *pieces])

    def _block(self, block: int) -> Indices:
        if block not in self._blocks:
            self._blocks = dict(list(self._blocks.items())[-1:])
            self._blocks[block] = self._order.at(np.arange(_BLOCK, dtype=np.int64) + block * _BLOCK)
        return self._blocks[block]


def deal(num_samples: int, rank: int, num_ranks: int) -> tuple[int, int]:
    """The contiguous, nearly equal share [first, last) of a step's samples that a rank works on."""
    return num_samples * rank // num_ranks, num_samples * (rank + 1) // num_ranks


def micro_batches(first: int, last: int, count: int) -> list[tuple[int, int]]:
    """Cut a share into `count` contiguous, nearly equal micro-batches; one is empty where samples run short.

    Every rank makes the same number, because each forward pass may hold collectives.
    """
    cuts = [first + (last - first) * i // count for i in range(count + 1)]
    return list(itertools.pairwise(cuts))


def _feistel(values: Keys, half_bits: int, round_keys: Keys) -> Keys:
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & mask
    for key in round_keys:
        left, right = right, left ^ (mix(right ^ key) & mask)
    return (left << shift) | right


def _round_keys(seed: int, epochs: Indices) -> Keys:
    """[rounds, epochs]"""
    rounds = np.arange(1, _ROUNDS + 1, dtype=np.uint64) * GOLDEN
    return mix(keys(seed, epochs) + rounds[:, None])
