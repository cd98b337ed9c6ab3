"""Which rank holds up the others: each one's own time, apart from its waiting for them.

All ranks finish a step together, so only what a rank does by itself tells them apart: its wait for samples, and its
passes up to where it waits for another rank. The times are added up where they are taken and travel with the sums that
a step exchanges anyway, once for each line of the log.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from orchestrator.track import metrics


class Stopwatch:
    """Seconds of a rank's own passes: by the clock, on a GPU by the GPU's own, for which nothing has to wait."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._spans: list[tuple[Any, Any]] = []

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Count what is done in the block; a block that raises does not count."""
        began = self._mark()
        yield
        self._spans.append((began, self._mark()))

    def take(self) -> float:
        """Seconds counted since the last call; on a GPU only once it is through with them."""
        spans, self._spans = self._spans, []
        return sum(_seconds(began, ended) for began, ended in spans)

    def _mark(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


class RankTimes:
    """One rank's own times since the last line of the log.

    Every rank's `share` has room for the times of all, with zeros for the others: their sum over ranks has them all,
    and `times_line` reads it.
    """

    def __init__(self, *, rank: int, num_ranks: int) -> None:
        self._rank, self._num_ranks = rank, num_ranks
        self._compute_s = self._data_wait_s = 0.0
        self._steps = 0

    def add(self, *, compute_s: float, data_wait_s: float) -> None:
        """Count a step."""
        self._compute_s += compute_s
        self._data_wait_s += data_wait_s
        self._steps += 1

    def share(self) -> list[float]:
        """[2 x num_ranks] mean seconds a step: passes of each rank, then waits for samples. Counting begins anew."""
        steps = max(1, self._steps)
        passes, waits = [0.0] * self._num_ranks, [0.0] * self._num_ranks
        passes[self._rank], waits[self._rank] = self._compute_s / steps, self._data_wait_s / steps
        self._compute_s = self._data_wait_s = 0.0
        self._steps = 0
        return [*passes, *waits]


def times_line(shares: Sequence[float]) -> dict[str, float]:
    """Metrics of the ranks' own times, from the sum of their shares [2 x num_ranks]."""
    num_ranks = len(shares) // 2
    passes, waits = shares[:num_ranks], shares[num_ranks:]
    own_s = [compute_s + wait_s for compute_s, wait_s in zip(passes, waits, strict=True)]
    rank, excess = slowest(own_s)
    line: dict[str, float] = {metrics.SLOWEST_RANK: rank, metrics.SLOWEST_EXCESS: round(excess, 4)}
    for number, (all_s, wait_s) in enumerate(zip(own_s, waits, strict=True)):
        line[metrics.of_part(metrics.RANK_TIME, str(number))] = round(all_s, 6)
        line[metrics.of_part(metrics.RANK_DATA_WAIT, str(number))] = round(wait_s, 6)
    return line


def slowest(own_s: Sequence[float]) -> tuple[int, float]:
    """The rank with the most seconds, the first of equal ones, and by which share they exceed the median of all ranks.

    The share is 0 where the median is: nothing was measured.
    """
    rank = max(range(len(own_s)), key=own_s.__getitem__)
    middle_s = statistics.median(own_s)
    return rank, own_s[rank] / middle_s - 1.0 if middle_s else 0.0


def _seconds(began: Any, ended: Any) -> float:
    return float(ended - began if isinstance(began, float) else began.elapsed_time(ended) / 1000.0)
