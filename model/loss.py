"""Cross entropy without a whole matrix of logits. Shapes: N tokens, C in a chunk, D, V vocabulary."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORED_TARGET = -100
"""A target that costs nothing: padding, prompts."""

_CHUNK_NUMBERS = {"cpu": 2**21}
_CHUNK_NUMBERS_ELSEWHERE = 2**26
_MIN_CHUNK_ROWS = 128
"""Fewer rows, and reading the whole weight for each chunk would cost more than multiplying by it."""


class _Settings(NamedTuple):
    """What of a loss is no tensor."""

    dtype: torch.dtype
    """What matrices are multiplied in."""
    label_smoothing: float
    ignore: int
    chunk_rows: int
    with_gradients: bool


def projected_cross_entropy(
    x_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    *,
    bias_V: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore: int = IGNORED_TARGET,
    chunk_rows: int | None = None,
) -> Tensor:
    """The sum of the cross entropies of `x_ND @ weight_VD.T + bias_V`, in nats: an fp32 scalar.

    Logits are made, judged and left chunk by chunk, and the gradients of all inputs are ready when the forward pass
    ends: memory for C x V numbers is enough, where N x V would be needed twice over (the idea of Liger Kernel, Hsu
    et al. 2024, and of Wijmans et al. 2024). Sums are fp32; products have the type of `x_ND`, or autocast's. The
    gradient of a bf16 or fp16 weight is gathered in fp32 over the chunks and rounded once.

    Args:
        targets_N: int64; those that equal `ignore` cost nothing.
        label_smoothing: the share of the target that is spread evenly over V (Szegedy et al. 2016).
        chunk_rows: C; None suits the device.
    """
    device = x_ND.device.type
    autocast = torch.is_autocast_enabled(device)
    settings = _Settings(
        dtype=torch.get_autocast_dtype(device) if autocast else x_ND.dtype,
        label_smoothing=label_smoothing,
        ignore=ignore,
        chunk_rows=chunk_rows or default_chunk_rows(device, len(weight_VD)),
        with_gradients=torch.is_grad_enabled(),
    )
    loss: Tensor = _ProjectedCrossEntropy.apply(x_ND, weight_VD, bias_V, targets_N, settings)  # type: ignore[no-untyped-call]
    return loss


def default_chunk_rows(device: str, vocab_size: int) -> int:
    """C: rows whose logits are made at a time on this type of device ("cpu", "cuda"). Its logits take 4 C V bytes."""
    return max(_MIN_CHUNK_ROWS, _CHUNK_NUMBERS.get(device, _CHUNK_NUMBERS_ELSEWHERE) // vocab_size)


class _ProjectedCrossEntropy(torch.autograd.Function):
    """Computes the gradients of an upstream gradient of 1 in the forward pass; the backward pass scales them."""

    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor, settings: _Settings
    ) -> Tensor:
        wanted = [settings.with_gradients and needed for needed in ctx.needs_input_grad[:3]]
        gradients = _Gradients(
            x_ND=torch.empty_like(x_ND, dtype=settings.dtype) if wanted[0] else None,
            weight_VD=torch.zeros_like(weight_VD, dtype=torch.float32) if wanted[1] else None,
            bias_V=torch.zeros_like(bias_V, dtype=torch.float32) if bias_V is not None and wanted[2] else None,
        )
        with torch.autocast(x_ND.device.type, enabled=False):
            loss = _loss_and_gradients(_Inputs(x_ND, weight_VD, bias_V, targets_N), settings, gradients)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = (x_ND.dtype, weight_VD.dtype, None if bias_V is None else bias_V.dtype)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [
            None if gradient is None else (gradient * upstream).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *scaled, None, None


class _Inputs(NamedTuple):
    x_ND: Tensor
    weight_VD: Tensor
    bias_V: Tensor | None
    targets_N: Tensor


class _Gradients(NamedTuple):
    """What the chunks add to; None where it is not wanted. All are fp32 but the first."""

    x_ND: Tensor | None
    weight_VD: Tensor | None
    bias_V: Tensor | None


class _Scratch:
    """Memory that all chunks share: fresh pages for each would cost more than the arithmetic on them (CPU)."""

    def __init__(self, inputs: _Inputs, settings: _Settings) -> None:
        vocab, width = inputs.weight_VD.shape
        rows = min(settings.chunk_rows, len(inputs.x_ND))
        new = functools.partial(torch.empty, device=inputs.x_ND.device)
        self.products_CV = new(rows, vocab, dtype=settings.dtype)
        self.wide_CV = new(rows if settings.dtype != torch.float32 else 0, vocab)
        self.shares_CV = new(rows, vocab)
        self.weight_VD = new(vocab if settings.dtype != torch.float32 else 0, width, dtype=settings.dtype)


def _loss_and_gradients(inputs: _Inputs, settings: _Settings, gradients: _Gradients) -> Tensor:
    """The summed loss, fp32; fills `gradients`."""
    weight_VD = inputs.weight_VD.to(settings.dtype)
    loss = torch.zeros((), dtype=torch.float32, device=inputs.x_ND.device)
    scratch = _Scratch(inputs, settings)
    for first in range(0, len(inputs.x_ND), settings.chunk_rows):
        rows = slice(first, first + settings.chunk_rows)
        x_CD, targets_C = inputs.x_ND[rows].to(settings.dtype), inputs.targets_N[rows]
        kept_C1 = (targets_C != settings.ignore)[:, None]
        # An ignored target may be no class at all, so that its row is judged by class 0 and then struck out.
        targets_C1 = targets_C[:, None] * kept_C1
        wide_CV = torch.mm(x_CD, weight_VD.T, out=scratch.products_CV[: len(x_CD)])
        if settings.dtype != torch.float32:
            wide_CV = scratch.wide_CV[: len(x_CD)].copy_(wide_CV)
        if inputs.bias_V is not None:
            wide_CV.add_(inputs.bias_V)
        shares_CV = torch.softmax(wide_CV, -1, out=scratch.shares_CV[: len(x_CD)])
        loss += (_losses(wide_CV, shares_CV, targets_C1, settings.label_smoothing) * kept_C1).sum()
        if settings.with_gradients:
            _shares_to_slopes(shares_CV, targets_C1, settings.label_smoothing)
            slope_CV = shares_CV
            if settings.dtype != torch.float32:
                slope_CV = scratch.products_CV[: len(x_CD)].copy_(shares_CV)
            _add_gradients(gradients, rows, slope_CV, kept_C1, x_CD=x_CD, weight_VD=weight_VD, scratch=scratch)
    return loss


def _losses(wide_CV: Tensor, shares_CV: Tensor, targets_C1: Tensor, smoothing: float) -> Tensor:
    """Cross entropies [C, 1]."""
    # The largest share is exp(largest logit - logsumexp), and at least 1 / V: no logarithm of 0 can come of it.
    logsumexp_C1 = wide_CV.amax(1, keepdim=True) - shares_CV.amax(1, keepdim=True).log()
    aim_C1 = wide_CV.gather(1, targets_C1)
    if smoothing:
        aim_C1 = (1 - smoothing) * aim_C1 + smoothing * wide_CV.mean(1, keepdim=True)
    return logsumexp_C1 - aim_C1


def _shares_to_slopes(shares_CV: Tensor, targets_C1: Tensor, smoothing: float) -> None:
    """Turn shares, in place, into the gradient of the losses by the logits: shares less what they should be."""
    if smoothing:
        shares_CV.sub_(smoothing / shares_CV.shape[1])
    shares_CV.scatter_add_(1, targets_C1, shares_CV.new_full(targets_C1.shape, smoothing - 1))


def _add_gradients(
    gradients: _Gradients,
    rows: slice,
    slope_CV: Tensor,
    kept_C1: Tensor,
    *,
    x_CD: Tensor,
    weight_VD: Tensor,
    scratch: _Scratch,
) -> None:
    """Add what one chunk contributes. Ignored rows are struck out of the narrow factors, which cost less to touch."""
    if gradients.x_ND is not None:
        torch.mm(slope_CV, weight_VD, out=gradients.x_ND[rows]).mul_(kept_C1)
    if gradients.bias_V is not None:
        gradients.bias_V.add_((kept_C1.type_as(slope_CV).T @ slope_CV)[0])
    if gradients.weight_VD is None:
        return
    kept_x_CD = x_CD * kept_C1
    if x_CD.dtype == torch.float32:
        gradients.weight_VD.addmm_(slope_CV.T, kept_x_CD)
    else:
        gradients.weight_VD.add_(torch.mm(slope_CV.T, kept_x_CD, out=scratch.weight_VD))
