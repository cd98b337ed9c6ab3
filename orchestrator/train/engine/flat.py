"""The trained weights of a model in one vector. N numbers in it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from orchestrator.train.optimizers import Kind, trained_parameters

_ALIGNED_NUMBERS = 64
"""Parameters begin at multiples of this: matrix kernels are slow, or refuse, where an address is odd."""
_BLOCK_NUMBERS = 4096
"""The whole is a multiple of this, for `norm_of`."""


@dataclass(frozen=True)
class Slot:
    """Where a parameter lies."""

    name: str
    shape: torch.Size
    kind: Kind
    start: int

    @property
    def numbers(self) -> int:
        """In the parameter."""
        return math.prod(self.shape)


class FlatWeights:
    """The trained parameters of a model as views of one vector, and their gradients of another.

    Parameters of one kind lie together; after each there may be unused zeros.

    Args:
        model: its trained parameters are moved into the vectors, one by one, so that none is held twice.
        low_precision: the model computes with bf16 copies; the fp32 vector stays the truth.

    Raises:
        ValueError: nothing of the model is trained.
    """

    def __init__(self, model: nn.Module, *, device: torch.device, low_precision: bool) -> None:
        trained = sorted(trained_parameters(model), key=lambda found: found[2])  # stable within a kind
        if not trained:
            raise ValueError("the model has no parameter that is trained")
        self._parameters = [parameter for _, parameter, _ in trained]
        self.slots: list[Slot] = []
        total = 0
        for name, parameter, kind in trained:
            self.slots.append(Slot(name, parameter.shape, kind, total))
            total += -(-parameter.numel() // _ALIGNED_NUMBERS) * _ALIGNED_NUMBERS
        self.master_N = torch.zeros(-(-total // _BLOCK_NUMBERS) * _BLOCK_NUMBERS, device=device)
        for parameter, weight in zip(self._parameters, self.views(self.master_N), strict=True):
            weight.copy_(parameter.detach())
            parameter.data = weight
        self._shown_N = self.master_N
        self._rounded_N = self.master_N.bfloat16() if low_precision else None
        if self._rounded_N is not None:
            self._point_at(self._rounded_N)
        self.grads_N = torch.zeros_like(self.master_N if self._rounded_N is None else self._rounded_N)
        for parameter, grad in zip(self._parameters, self.views(self.grads_N), strict=True):
            parameter.grad = grad

    def views(self, flat_N: Tensor) -> list[Tensor]:
        """A vector of this length, as tensors in the parameters' shapes."""
        return [flat_N[slot.start : slot.start + slot.numbers].view(slot.shape) for slot in self.slots]

    def section(self, kind: Kind) -> tuple[int, int]:
        """From where up to where the parameters of a kind lie."""
        starts = [slot.start for slot in self.slots if slot.kind >= kind]
        after = [slot.start for slot in self.slots if slot.kind > kind]
        end = len(self.master_N)
        return min(starts, default=end), min(after, default=end)

    def show(self, values_N: Tensor, *, changed: bool = False) -> None:
        """Let the model compute with these fp32 weights; `changed` since they were shown last."""
        if self._rounded_N is not None:
            if changed or values_N is not self._shown_N:
                self._rounded_N.copy_(values_N)
        elif values_N is not self._shown_N:
            self._point_at(values_N)
        self._shown_N = values_N

    def _point_at(self, used_N: Tensor) -> None:
        for parameter, weight in zip(self._parameters, self.views(used_N), strict=True):
            parameter.data = weight


def norm_of(flat_N: Tensor) -> Tensor:
    """The norm of a vector of `FlatWeights`, block by block: in one go it is 0.5 % off where N is 64 million."""
    norm: Tensor = torch.linalg.vector_norm(torch.linalg.vector_norm(flat_N.view(-1, _BLOCK_NUMBERS), dim=1))
    return norm
