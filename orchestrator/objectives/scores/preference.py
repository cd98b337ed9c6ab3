"""Whether the preferred answer of a pair has the higher implied reward (DPO, Rafailov et al. 2023). Pure."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from orchestrator.objectives.scores.arithmetic import Series
from orchestrator.objectives.scores.result import Scores, State, require_same_length, require_scored


class PreferenceScores:
    """Margins: reward of the chosen answer less that of the rejected one."""

    def __init__(self) -> None:
        self._margins = Series()

    def add(self, chosen_N: npt.ArrayLike, rejected_N: npt.ArrayLike) -> None:
        """Rewards of N pairs: beta x (log probability of the answer - that of the reference model), in nats."""
        chosen, rejected = np.asarray(chosen_N, dtype=np.float64), np.asarray(rejected_N, dtype=np.float64)
        require_same_length(chosen.size, rejected.size, "rewards of chosen and rejected answers")
        self._margins.add(chosen.reshape(-1) - rejected.reshape(-1))

    def state(self) -> State:
        """As Accumulator."""
        return {"margins": self._margins.values()}

    def merge(self, states: Iterable[State]) -> None:
        """As Accumulator."""
        for state in states:
            self._margins.add(state["margins"])

    def result(self) -> Scores:
        """`reward_accuracy`, the share of pairs with a margin above 0, and `reward_margin`, their mean in nats."""
        margins_N = self._margins.values()
        require_scored(len(margins_N), "pairs")
        accuracy = int((margins_N > 0).sum()) / len(margins_N)
        return Scores({"reward_accuracy": accuracy, "reward_margin": self._margins.sum() / len(margins_N)})
