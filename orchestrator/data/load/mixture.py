"""Mixtures by weight: which part, and which sample of it, stands at each position of the training sequence. Pure.

Without weights there is one stream over all parts, and each sample comes once an epoch. With weights each part has a
stream and samples of its own. The weights become whole numbers of slots in a block of positions (at most 10,000: the
smallest block that holds them exactly, else the nearest by largest remainder). In each block the slots are permuted by
a key of their own, so any position is found in O(1), and a part's share is never more than a block away from exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from orchestrator.data.load.keyed import derive
from orchestrator.data.load.order import Indices, SampleOrder, permute
from orchestrator.errors import JobError
from orchestrator.job_data import Phase

LARGEST_BLOCK = 10_000
_NEVER = 1 << 60


@dataclass(frozen=True)
class Part:
    """A source, or a dataset, of a split."""

    name: str
    weight: float | None
    """Share of the samples, relative to the other weights; null everywhere: each sample once an epoch."""
    shard_paths: list[Path]


def slots(weights: Sequence[float]) -> Indices:
    """Weights as whole slots of a block: [P] -> [P]; every weight above 0 gets one at least.

    A weight means what its shortest decimal says: 0.7 and 0.3 make a block of 10.
    """
    exact = [Fraction(repr(float(weight))) for weight in weights]
    total = sum(exact)
    shares = [weight / total for weight in exact]
    size = math.lcm(*(share.denominator for share in shares))
    if size > LARGEST_BLOCK:
        size = max(LARGEST_BLOCK, sum(share > 0 for share in shares))
    counts = [max(math.floor(share * size), int(share > 0)) for share in shares]
    while (left := size - sum(counts)) != 0:
        # Who is furthest below its share gets one more; where the minimum of 1 took too many, the furthest above pays.
        missing = [share * size - count for share, count in zip(shares, counts, strict=True)]
        givers = [i for i, count in enumerate(counts) if left > 0 or count > 1]
        chosen = max(givers, key=lambda i: (missing[i] if left > 0 else -missing[i], -i))
        counts[chosen] += 1 if left > 0 else -1
    return np.array(counts, dtype=np.int64)


@dataclass(frozen=True)
class Numbers:
    """Positions as a part each, and a running number in that part."""

    parts: Indices
    numbers: Indices


class _Stage:
    """A phase from position `first` to `last` (endless where null): whole blocks, and at its end part of a block."""

    def __init__(self, first: int, last: int | None, counts: Indices, *, before: Indices, seed: int) -> None:
        self.first = first
        self._counts, self._before, self._seed = counts, before, seed
        self._size = int(counts.sum())
        self._borders = np.concatenate([[0], np.cumsum(counts)])
        # The block that the phase leaves unfinished would have gaps in its running numbers: there they are counted.
        self._tail_first = _NEVER if last is None else last - (last - first) % self._size
        tail = self._slots(np.arange(self._tail_first, self._tail_first if last is None else last))[0]
        earlier = before + (self._tail_first - first) // self._size * counts
        self._tail_numbers = earlier[tail] + _earlier_equals(tail)
        self.after = earlier + np.bincount(tail, minlength=len(counts))

    def numbers(self, positions: Indices) -> Numbers:
        parts, blocks, slot = self._slots(positions)
        numbers = self._before[parts] + blocks * self._counts[parts] + slot - self._borders[parts]
        tail = np.flatnonzero(positions >= self._tail_first)
        numbers[tail] = self._tail_numbers[positions[tail] - self._tail_first]
        return Numbers(parts, numbers)

    def consumed(self, position: int) -> Indices:
        """Samples of each part at positions 0 to `position` - 1."""
        blocks = (position - self.first) // self._size
        parts = self._slots(np.arange(self.first + blocks * self._size, position))[0]
        return self._before + blocks * self._counts + np.bincount(parts, minlength=len(self._counts))

    def _slots(self, positions: Indices) -> tuple[Indices, Indices, Indices]:
        blocks, within = np.divmod(positions - self.first, self._size)
        slot = permute(within, self._size, self._seed, blocks) if self._size > 1 else within
        return np.searchsorted(self._borders, slot, side="right") - 1, blocks, slot


class Mixture:
    """The endless sequence of a mixture, as ids: a part's samples have consecutive ids, the parts follow in order.

    Args:
        parts: in stream order; without a curriculum each has a weight.
        num_samples: of each part, in an epoch.
        curriculum: phases in rising `until_step`; a part that one does not name is left out there. Each begins
            with a step. The weights of the last go on to the end of the training.
        samples_per_step: positions of a step.
        seed: of the slots' order, and of each part's samples.

    Raises:
        JobError: a part with a weight has not one sample.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        num_samples: Sequence[int],
        *,
        curriculum: Sequence[Phase],
        samples_per_step: int,
        seed: int,
    ) -> None:
        self._orders = [
            SampleOrder(max(1, count), derive(seed, "samples", part.name))
            for part, count in zip(parts, num_samples, strict=True)
        ]
        self.first_ids = np.concatenate([[0], np.cumsum(num_samples, dtype=np.int64)])
        phases = list(curriculum) or [Phase(weights={part.name: part.weight or 0.0 for part in parts})]
        self._stages: list[_Stage] = []
        first, before = 0, np.zeros(len(parts), dtype=np.int64)
        for i, phase in enumerate(phases):
            weights = _weights(phase.weights, parts, num_samples)
            until = None if phase.until_step is None or i + 1 == len(phases) else phase.until_step * samples_per_step
            stage = _Stage(first, until, slots(weights), before=before, seed=derive(seed, "slots", i))
            self._stages.append(stage)
            if until is not None:
                first, before = until, stage.after
        self._firsts = np.array([stage.first for stage in self._stages], dtype=np.int64)

    def numbers(self, positions: Indices) -> Numbers:
        """The part at each position, and how many samples of that part came before."""
        which = np.searchsorted(self._firsts, positions, side="right") - 1
        result = Numbers(np.empty_like(positions), np.empty_like(positions))
        for stage in np.unique(which):
            chosen = which == stage
            found = self._stages[stage].numbers(positions[chosen])
            result.parts[chosen], result.numbers[chosen] = found.parts, found.numbers
        return result

    def at(self, positions: Indices) -> Indices:
        """Sample ids at positions 0, 1, 2, ...: [N] -> [N]."""
        found = self.numbers(positions)
        ids = np.empty_like(positions)
        for part in np.unique(found.parts):
            chosen = found.parts == part
            ids[chosen] = self.first_ids[part] + self._orders[part].at(found.numbers[chosen])
        return ids

    def consumed(self, position: int) -> Indices:
        """Samples of each part at positions 0 to `position` - 1: [P]."""
        stage = int(np.searchsorted(self._firsts, position, side="right")) - 1
        return self._stages[stage].consumed(position)


def is_mixture(parts: Sequence[Part], curriculum: Sequence[Phase]) -> bool:
    """Whether weights say what is read; else each sample comes once an epoch."""
    return bool(curriculum) or any(part.weight is not None for part in parts)


def _weights(given: Mapping[str, float], parts: Sequence[Part], num_samples: Sequence[int]) -> list[float]:
    weights = [given.get(part.name, 0.0) for part in parts]
    for part, count, weight in zip(parts, num_samples, weights, strict=True):
        if weight and not count:
            raise JobError(
                f"{part.name} has a weight of {weight:g}, but its training split is too short for one sample",
                fix=f"lower model.context, add text to {part.name}, or take it out",
            )
    return weights


def _earlier_equals(values: Indices) -> Indices:
    """How often each value stands before it in the array."""
    by_value = np.argsort(values, kind="stable")
    starts = np.searchsorted(values[by_value], values[by_value], side="left")
    result = np.empty_like(values)
    result[by_value] = np.arange(len(values)) - starts
    return result
