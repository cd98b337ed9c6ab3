"""Matrices as the compiled products read them: panels of 32 outputs, in each the inputs one after another.

Shapes: O outputs, I inputs, P panels, C groups of inputs, J inputs of a group.
"""

from __future__ import annotations

import ctypes
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Kind = Literal["fp32", "bf16", "int8"]
PANEL = 32
"""Outputs side by side; also the width that rows of numbers are rounded up to."""
_GROUP = {"fp32": 1, "bf16": 2, "int8": 2}
"""Inputs that are multiplied in one operation."""


class Matrix(ctypes.Structure):
    """`Matrix` of product.h."""

    _fields_ = (
        ("weights", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("inputs", ctypes.c_int),
        ("outputs", ctypes.c_int),
    )


class Packer:
    """Makes such matrices, and keeps their memory: the structures that it gives hold addresses only."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._kept: list[Tensor] = []

    def address(self, x: Tensor) -> int:
        """Of `x`, which is kept from now on."""
        self._kept.append(x)
        return x.data_ptr()

    def row(self, x_I: Tensor) -> int:
        """The address of fp32 numbers, rounded up to whole panels with zeros."""
        return self.address(_padded(x_I.detach().float(), 0, PANEL))

    def matrix(self, weight_OI: Tensor, bias_O: Tensor | None = None) -> Matrix:
        """A projection's weight and bias."""
        return self._matrix(_panels(weight_OI, _GROUP[self._kind]), bias_O)

    def interleaved(self, gate_OI: Tensor, up_OI: Tensor) -> Matrix:
        """Two projections of the same inputs, a panel of the one and a panel of the other by turns."""
        group = _GROUP[self._kind]
        return self._matrix(torch.stack((_panels(gate_OI, group), _panels(up_OI, group)), 1).flatten(0, 1), None)

    def _matrix(self, panels_PCOJ: Tensor, bias_O: Tensor | None) -> Matrix:
        panels, groups, _, group = panels_PCOJ.shape
        scales = None
        if self._kind == "int8":
            panels_PCOJ, scales_PO = quantised(panels_PCOJ)
            scales = self.address(scales_PO)
        return Matrix(
            self.address(panels_PCOJ.contiguous()),
            scales,
            None if bias_O is None else self.row(bias_O),
            groups * group,
            panels * PANEL,
        )


def quantised(panels_PCOJ: Tensor) -> tuple[Tensor, Tensor]:
    """8-bit weights, and the fp32 scale [P, O] of each output: its largest weight is 127 of them."""
    wide_PCOJ = panels_PCOJ.float()
    scales_PO = wide_PCOJ.abs().amax((1, 3)) / 127
    divisor_PO = torch.where(scales_PO > 0, scales_PO, 1.0)
    whole_PCOJ = (wide_PCOJ / divisor_PO[:, None, :, None]).round()
    return whole_PCOJ.to(torch.int8), scales_PO.contiguous()


def _panels(weight_OI: Tensor, group: int) -> Tensor:
    """[P, C, 32, J], with zeros beyond O and I."""
    padded_OI = _padded(_padded(weight_OI.detach(), 0, PANEL), 1, group)
    outputs, inputs = padded_OI.shape
    return padded_OI.view(outputs // PANEL, PANEL, inputs // group, group).transpose(1, 2)


def _padded(x: Tensor, axis: int, multiple: int) -> Tensor:
    """`x`, its last axis but `-axis` made a multiple with zeros; contiguous."""
    missing = -x.shape[axis] % multiple
    after = [0, 0] * (x.dim() - 1 - axis)
    return F.pad(x, [*after, 0, missing]).contiguous()
