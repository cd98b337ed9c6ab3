"""What a step's gradients tell of the size of a batch. Pure.

A batch's gradient is the true one plus noise that falls with its size, so the gradients of a batch and of a part of it
tell both (McCandlish et al. 2018, appendix A.1).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from orchestrator.objectives.protocol import Batch

_EVERY_STEPS = 10
"""A norm reads all weights once: at every tenth step that is far below a thousandth of the time."""
_KEPT = 0.9
"""Of what the measurements before said: a single one is mostly noise itself."""


class Statistics:
    """Running estimates of the squared norm of the true gradient, and of the noise that a step's batch adds to it."""

    def __init__(self) -> None:
        self.state = torch.zeros(3, dtype=torch.float64)
        """Steps, true gradient, noise: all there is to save, changed in place."""

    def due(self) -> bool:
        """Count a step; whether it is one to measure."""
        self.state[0] += 1
        return int(self.state[0]) % _EVERY_STEPS == 0

    def add(self, *, part: float, inverse_share: float, whole: float) -> None:
        """Count a measurement.

        Args:
            part: mean squared norm of the gradients of parts of a batch, each scaled as if its part were the batch.
            inverse_share: mean of one over the part's share of the batch; above 1.
            whole: squared norm of the batch's gradient.
        """
        noise = (part - whole) / (inverse_share - 1.0)
        found = torch.tensor([whole - noise, noise], dtype=torch.float64)
        self.state[1:] = _KEPT * self.state[1:] + (1.0 - _KEPT) * found

    def noise_scale(self) -> float | None:
        """The batch, as a multiple of the step's, whose noise is as large as its gradient; None while not known."""
        _, gradient, noise = self.state.tolist()
        return max(0.0, noise) / gradient if gradient > 0.0 else None


def share_of(batch: Batch, totals: Mapping[str, float]) -> float:
    """The share of the step's targets that a micro-batch has: a mean over the parts of the loss."""
    return sum(batch.counts[part] / totals[part] for part in batch.counts) / len(batch.counts)
