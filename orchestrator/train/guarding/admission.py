"""What stands between a step's gradient and its update: the guard's verdict, and replicas that are alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from orchestrator.data.load.order import Indices
from orchestrator.train.engine.protocol import TrainEngine
from orchestrator.train.group import TorchGroup
from orchestrator.train.guarding.guard import NAMED, Anomaly, Guard
from orchestrator.train.guarding.replicas import require_alike


class Noticing(Protocol):
    """Who is told of a step whose numbers are wrong."""

    def noticed(self, anomaly: Anomaly) -> None:
        """On every rank, before what follows."""
        ...


@dataclass
class Admission:
    """One rank's; all come to the same."""

    engine: TrainEngine
    group: TorchGroup
    guard: Guard
    hooks: Noticing
    compare_every: int | None
    """Steps between two comparisons of the ranks' weights."""

    def admits(self, step: int, *, loss: float, grad_norm: float, samples: Indices) -> bool:
        """Whether a step's update is made. Once a step, on all ranks, before it.

        Raises:
            NumericalError: the attempt ends here, with nothing changed.
            TrainError: the ranks' weights differ.
        """
        if self.compare_every is not None and step % self.compare_every == 0:
            self._compare(step)
        verdict = self.guard.judge(step, loss, grad_norm)
        if verdict.action == "none":
            return True
        anomaly = Anomaly(step, verdict, tuple(samples[:NAMED].tolist()), max(0, len(samples) - NAMED))
        self.hooks.noticed(anomaly)
        if verdict.action in ("stop", "rollback"):
            self.group.sum(0.0)  # no rank ends before rank 0 has told of it
            raise anomaly.error()
        return verdict.action != "skip"

    def before_saving(self, step: int) -> None:
        """Refuse to keep weights that differ between ranks. Collective.

        Raises:
            TrainError: they do.
        """
        if self.compare_every is not None:
            self._compare(step)

    def _compare(self, step: int) -> None:
        if self.group.num_ranks > 1:
            require_alike(self.group.gather(self.engine.checksum()), step=step)
