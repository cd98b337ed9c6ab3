"""What a step's gradients tell of the size of a batch.

A batch's gradient is the true one plus noise that falls with its size, so the gradients of a batch and of a part of it
tell both (McCandlish et al. 2018, appendix A.1).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from orchestrator.objectives.protocol import Batch
from orchestrator.track import metrics

_EVERY_STEPS = 10
"""A norm reads all weights once: at every tenth step that is far below a thousandth of the time."""
_KEPT = 0.9
"""Of what the measurements before said: a single one is mostly noise itself."""
_NAME = "statistics."
_BLOCK_NUMBERS = 1 << 20
"""In one go the norm of a long tensor in fp32 is some tenths of a percent off."""


class Statistics:
    """Running estimates of the squared norm of the true gradient, and of the noise that a step's batch adds to it."""

    def __init__(self) -> None:
        self.state = torch.zeros(3, dtype=torch.float64)
        """Steps, true gradient, noise: all there is to save, changed in place."""

    def due(self) -> bool:
        """Count a step; whether it is one to measure."""
        self.state[0] += 1
        return int(self.state[0]) % _EVERY_STEPS == 0

    def of_step(
        self, *, own: float | None, share: float, whole: float, add_up: Callable[..., list[float]]
    ) -> dict[str, float]:
        """Metrics of a step that is measured. Collective where it has several micro-batches.

        Args:
            own: norm of the gradient of this rank's first micro-batch, before anything is reduced; None on all ranks
                where that is the whole step.
            share: of the step's targets, that this micro-batch has.
            whole: norm of the whole gradient.
            add_up: sums numbers over all ranks.
        """
        if own is None:
            return {}
        # A rank that has run out of samples has no gradient of its own.
        numbers = ((own / share) ** 2, 1.0 / share, 1.0) if share else (0.0, 0.0, 0.0)
        part, inverse_share, ranks = add_up(*numbers)
        if inverse_share > ranks and math.isfinite(part) and math.isfinite(whole):
            self.add(part=part / ranks, inverse_share=inverse_share / ranks, whole=whole**2)
        scale = self.noise_scale()
        return {} if scale is None else {metrics.GRADIENT_NOISE: scale}

    def numbers(self) -> dict[str, float]:
        """All there is to save."""
        return {f"{_NAME}{i}": value for i, value in enumerate(self.state.tolist())}

    def take_up(self, numbers: Mapping[str, float]) -> None:
        """The inverse of `numbers`; what is not there is 0."""
        for i in range(len(self.state)):
            self.state[i] = numbers.get(f"{_NAME}{i}", 0.0)

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


@contextlib.contextmanager
def catching(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Norms of the gradients that a backward pass gives these parameters, as this rank computes them.

    They are caught before they are added to any others and before DeepSpeed's own hooks: at ZeRO stages 2 and 3 no rank
    has its own gradient as a whole later.
    """
    norms: list[Tensor] = []

    def catch(gradient: Tensor) -> None:
        norms.append(norm_of_all([gradient]))

    with contextlib.ExitStack() as hooks:
        for parameter in parameters:
            hooks.callback(parameter.register_hook(catch).remove)  # type: ignore[no-untyped-call]
        yield norms


def norm_of_all(tensors: Iterable[Tensor]) -> Tensor:
    """The norm of all numbers in some tensors, in fp32."""
    parts = [block for tensor in tensors for block in torch.split(tensor.detach().reshape(-1), _BLOCK_NUMBERS)]
    if not parts:
        return torch.zeros(())
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(parts, 2, dtype=torch.float32)))
    return norm
