"""Randomness without state: numbers that are a function of (seed, purpose, indices) alone. Pure.

What is drawn so is the same in any process, at any world size, and in any order of asking.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_TOP_53_BITS = np.uint64(11)


def derive(seed: int, *purpose: str | int) -> int:
    """A seed of 64 bits for one purpose: two purposes draw unrelated numbers."""
    text = "\0".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def mix(x: Keys) -> Keys:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): each input bit moves half of the output bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def keys(seed: int, indices: npt.ArrayLike) -> Keys:
    """A key an index, [..., N] -> [..., N]; of 0 dimensions -> [1]."""
    start = mix(np.array([seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64))
    return mix(start ^ np.asarray(indices, dtype=np.int64).astype(np.uint64) * GOLDEN)


def uniform(row_keys: Keys, count: int) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1), `count` a key: [B] -> [B, count]."""
    bits = mix(row_keys[:, None] + np.arange(1, count + 1, dtype=np.uint64) * GOLDEN)
    return (bits >> _TOP_53_BITS).astype(np.float64) * 2.0**-53
