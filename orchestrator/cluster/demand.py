"""Machines that an autoscaler is asked for: a placement group that waits until they are there, and then makes way.

Its bundles come together or not at all, and it ends with its driver: nothing is asked for by somebody who has died.
"""

from __future__ import annotations

import contextlib
from typing import Any

from orchestrator.job_train import Workers


class Demand:
    """Room for so many workers, asked for."""

    def __init__(self) -> None:
        self._group: Any = None
        self._count = 0

    def ask(self, workers: Workers, count: int) -> None:
        """Ask for so many workers, once; what was asked before is withdrawn."""
        from ray.util import placement_group

        if count == self._count:
            return
        self.withdraw()
        one = {"CPU": workers.cpus, **({"GPU": workers.gpus} if workers.gpus else {})}
        self._group, self._count = placement_group([one] * count), count

    def come(self) -> bool:
        """Whether the machines are there; they are let go at once, for the workers to take."""
        if self._group is None or not self._group.wait(0):
            return False
        self.withdraw()
        return True

    def withdraw(self) -> None:
        """Ask for nothing any more."""
        from ray.util import remove_placement_group

        if self._group is not None:
            with contextlib.suppress(Exception):  # Ray's, where it has ended
                remove_placement_group(self._group)
        self._group, self._count = None, 0
