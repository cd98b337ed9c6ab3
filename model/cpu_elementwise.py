"""Norms and rotations in training on a CPU, block by block: what is between two operations stays in the cache.

Written out over whole tensors, each of their operations takes fresh memory, which costs more than its arithmetic.
Statistics and intermediate numbers are fp32 (doubles for doubles); results are rounded once, to the input's type.

Shapes: B rows, H heads, T tokens, K head width; N vectors of D numbers, C of them in a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_BLOCK_NUMBERS = 2**18
"""Of each tensor; a backward pass works on three at a time: 3 MB in fp32."""

Tables = tuple[Tensor, Tensor]
"""Cosines and signed sines, [1 or B, 1, T, K]: they broadcast over heads."""


def trains_on_cpu(x: Tensor) -> bool:
    """Whether what follows `x` is differentiated on a CPU, operation by operation: compilers fuse plain code better."""
    return x.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling()


def wide_type(dtype: torch.dtype) -> torch.dtype:
    """What numbers of this type are computed in."""
    return torch.promote_types(dtype, torch.float32)


def rms_norm(x_BTD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over D (Zhang and Sennrich 2019), differentiable once.

    Keeps its input and a number a vector for the backward pass.
    """
    y_BTD: Tensor = _RMSNorm.apply(x_BTD, weight_D, eps)  # type: ignore[no-untyped-call]
    return y_BTD


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
        wide = wide_type(x_ND.dtype)
        y_ND, weight_D_wide = x_ND.new_empty(x_ND.shape), weight_D.to(wide)
        scale_N1 = x_ND.new_empty((len(x_ND), 1), dtype=wide)
        (memory,) = _memory(x_ND, 1)
        for block in _vectors(x_ND):
            x_CD = memory[: len(x_ND[block])].copy_(x_ND[block])
            norm_C1 = torch.linalg.vector_norm(x_CD, dim=-1, keepdim=True)
            scale_C1 = norm_C1.square_().div_(x_CD.shape[1]).add_(eps).rsqrt_()
            scale_N1[block] = scale_C1
            y_ND[block] = x_CD.mul_(scale_C1).mul_(weight_D_wide)
        ctx.save_for_backward(x_ND, weight_D, scale_N1)
        return y_ND.view(x_BTD.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_BTD: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, weight_D, scale_N1 = ctx.saved_tensors
        slope_ND = slope_BTD.reshape(x_ND.shape)
        weight_D_wide = weight_D.to(scale_N1.dtype)
        dx_ND = x_ND.new_empty(x_ND.shape)
        dweight_D = torch.zeros_like(weight_D_wide)
        memory = _memory(x_ND, 3)
        for block in _vectors(x_ND):
            scale_C1 = scale_N1[block]
            normed_CD, slope_CD, both_CD = (part[: len(scale_C1)] for part in memory)
            torch.mul(normed_CD.copy_(x_ND[block]), scale_C1, out=normed_CD)
            torch.mul(slope_CD.copy_(slope_ND[block]), normed_CD, out=both_CD)
            dweight_D += both_CD.sum(0)
            along_C1 = (both_CD @ weight_D_wide).div_(-x_ND.shape[1])[:, None]
            slope_CD.mul_(weight_D_wide).addcmul_(normed_CD, along_C1)
            dx_ND[block] = slope_CD.mul_(scale_C1)
        return dx_ND.view(slope_BTD.shape), dweight_D.to(weight_D.dtype), None


def rotate(x_BTHK: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """What `attention.rotate` gives, differentiable once; keeps nothing but the tables for the backward pass."""
    y_BTHK: Tensor = _Rotation.apply(x_BTHK, cos, signed_sin)  # type: ignore[no-untyped-call]
    return y_BTHK


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BTHK: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, signed_sin)
        return _turned(x_BTHK, over_heads((cos, signed_sin)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_BTHK: Tensor) -> tuple[Tensor | None, ...]:
        return _turned(slope_BTHK, over_heads(ctx.saved_tensors, back=True)), None, None


def _turned(x_BTHK: Tensor, tables: Tables | None) -> Tensor:
    y_BTHK = x_BTHK.new_empty(x_BTHK.shape)
    turn(x_BTHK.transpose(1, 2), tables, out=y_BTHK.transpose(1, 2))
    return y_BTHK


def over_heads(rotary: Sequence[Tensor], *, back: bool = False) -> Tables | None:
    """Cosines and signed sines, [T, 1, K] or [B, T, 1, K], as `turn` wants them.

    Args:
        rotary: empty where nothing is to be turned.
        back: turn by the negative of each angle.
    """
    if not rotary:
        return None
    cos, signed_sin = ((table[None] if table.dim() == 3 else table).transpose(1, 2) for table in rotary)
    return cos, -signed_sin if back else signed_sin


def part_of(tables: Tables, rows: slice, tokens: slice) -> Tables:
    """The tables of these rows and tokens; those that serve all rows serve them too."""
    cos, signed_sin = tables
    own_rows = rows if len(cos) > 1 else slice(None)
    return cos[own_rows, :, tokens], signed_sin[own_rows, :, tokens]


def turn(x_BHTK: Tensor, tables: Tables | None, *, out: Tensor, scale: float = 1.0) -> None:
    """Write `x_BHTK`, turned by `tables` (None: not at all) and times `scale`, into `out`."""
    if tables is None:
        torch.mul(x_BHTK, scale, out=out)
        return
    if scale != 1.0:
        tables = (tables[0] * scale, tables[1] * scale)
    half = x_BHTK.shape[-1] // 2
    for rows, tokens in _tokens(x_BHTK):
        x = x_BHTK[rows, :, tokens]
        wide, swapped = x.new_empty((2, *x.shape), dtype=wide_type(x.dtype))
        wide.copy_(x)
        swapped[..., :half] = x[..., half:]
        swapped[..., half:] = x[..., :half]
        cosines, sines = part_of(tables, rows, tokens)
        out[rows, :, tokens] = wide.mul_(cosines).addcmul_(swapped, sines)


def _memory(x_ND: Tensor, count: int) -> Tensor:
    rows = min(len(x_ND), _block_rows(x_ND.shape[1]))
    return x_ND.new_empty((count, rows, x_ND.shape[1]), dtype=wide_type(x_ND.dtype))


def _block_rows(numbers: int) -> int:
    return max(1, _BLOCK_NUMBERS // numbers)


def _vectors(x_ND: Tensor) -> Iterator[slice]:
    rows = _block_rows(x_ND.shape[1])
    for first in range(0, len(x_ND), rows):
        yield slice(first, first + rows)


def _tokens(x_BHTK: Tensor) -> Iterator[tuple[slice, slice]]:
    """Rows and tokens of a block."""
    batch, heads, tokens, width = x_BHTK.shape
    count = min(tokens, _block_rows(heads * width))
    rows = _block_rows(heads * width * count)
    for row in range(0, batch, rows):
        for token in range(0, tokens, count):
            yield slice(row, row + rows), slice(token, token + count)
