"""The mean of a loss over its targets. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.objectives.scores.arithmetic import Series
from orchestrator.objectives.scores.result import Scores, State, require_scored


class MeanLoss:
    """The mean of summed losses; rounded once, so it is the same for any number of ranks."""

    def __init__(self) -> None:
        self._sums, self._count = Series(), 0

    def add(self, summed: float, count: int) -> None:
        """A loss summed over `count` targets."""
        self._sums.add(summed)
        self._count += count

    def state(self) -> State:
        """As Accumulator."""
        return {"sums": self._sums.values(), "count": self._count}

    def merge(self, states: Iterable[State]) -> None:
        """As Accumulator."""
        for state in states:
            self._sums.add(state["sums"])
            self._count += state["count"]

    def result(self) -> Scores:
        """`loss`, the mean over the targets."""
        require_scored(self._count, "targets")
        return Scores({"loss": self._sums.sum() / self._count})

    def beside(self, scores: Scores) -> Scores:
        """The scores with `loss` before them.

        Raises:
            ValueError: as `result`.
        """
        return Scores({**self.result().metrics, **scores.metrics}, scores.tables)
