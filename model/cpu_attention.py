"""Attention on a CPU in training: products of whole blocks of scores, which matrix kernels are made for.

torch's flash attention multiplies tiles of 32 to 64 rows here, at a tenth of the speed of a batched product (bf16).
No more is kept for the backward pass than flash attention keeps: scores are made again, block by block.

Shapes: B rows (n of them in a block), T queries and keys, H heads, K head width; R queries of a block, S keys they see.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_BLOCK_SCORES = 2**21
"""Scores of a block: they stay in the cache between the operations on them."""
_BLOCK_QUERIES = 128
"""Causal attention never makes the scores of a block's later keys; smaller blocks spare more and multiply slower."""


@torch.library.custom_op("slipway::cpu_attention", mutates_args=())
def cpu_attention(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, mask_B1TT: Tensor | None, causal: bool) -> Tensor:
    """Attention over `q_BHTK`'s own tokens, differentiable once: [B, H, T, K], in memory [B, T, H, K].

    Scores are rounded to the inputs' type; sums within a product or a softmax are fp32.

    Args:
        mask_B1TT: bool, True where a query may look (each at one key at least); broadcasts over queries and heads.
        causal: each query sees itself and what is before it, `mask_B1TT` apart.
    """
    q, k, v = _scaled(q_BHTK), k_BHTK.contiguous(), v_BHTK.contiguous()
    y_BTHK = torch.empty_like(q_BHTK.transpose(1, 2), memory_format=torch.contiguous_format)
    scratch = torch.empty(_scratch_numbers(q), dtype=q.dtype)
    for rows, queries, keys in _blocks(q, causal):
        shares = _shares(q[rows, :, queries], k[rows, :, keys], _part(mask_B1TT, rows, queries, keys), causal, scratch)
        y_BTHK[rows, queries] = _times(shares, v[rows, :, keys]).transpose(1, 2)
    return y_BTHK.transpose(1, 2)


@torch.library.custom_op("slipway::cpu_attention_backward", mutates_args=())
def cpu_attention_backward(
    slope_BHTK: Tensor, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, mask_B1TT: Tensor | None, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v, from that of `cpu_attention`'s result. In memory [B, T, H, K]."""
    q, k, v, slope = _scaled(q_BHTK), k_BHTK.contiguous(), v_BHTK.contiguous(), slope_BHTK.contiguous()
    scratch, slopes_scratch = torch.empty((2, _scratch_numbers(q)), dtype=q.dtype)
    # Added up over blocks of queries in fp32, whatever the type of the products.
    dq, dk, dv = (torch.zeros(_in_memory(q), dtype=torch.float32).transpose(1, 2) for _ in range(3))
    for rows, queries, keys in _blocks(q, causal):
        q_R, k_S, slope_R = q[rows, :, queries], k[rows, :, keys], slope[rows, :, queries]
        shares = _shares(q_R, k_S, _part(mask_B1TT, rows, queries, keys), causal, scratch)
        dv[rows, :, keys] += _times(shares.transpose(-1, -2), slope_R)
        slopes = _times(slope_R, v[rows, :, keys].transpose(-1, -2), out=slopes_scratch)
        torch.ops.aten._softmax_backward_data.out(slopes, shares, -1, slopes.dtype, grad_input=slopes)
        dq[rows, :, queries] = _times(slopes, k_S)
        dk[rows, :, keys] += _times(slopes.transpose(-1, -2), q_R)
    dq.mul_(1.0 / math.sqrt(q.shape[-1]))  # that of k has it from the scaled q
    return dq.to(q.dtype), dk.to(q.dtype), dv.to(q.dtype)


@cpu_attention.register_fake
def _(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, mask_B1TT: Tensor | None, causal: bool) -> Tensor:
    return q_BHTK.new_empty(_in_memory(q_BHTK)).transpose(1, 2)


@cpu_attention_backward.register_fake
def _(
    slope_BHTK: Tensor, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, mask_B1TT: Tensor | None, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    one, two, three = (q_BHTK.new_empty(_in_memory(q_BHTK)).transpose(1, 2) for _ in range(3))
    return one, two, three


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor | None, bool], output: Tensor) -> None:
    *tensors, ctx.causal = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, slope_BHTK: Tensor) -> tuple[Tensor | None, ...]:
    return *cpu_attention_backward(slope_BHTK, *ctx.saved_tensors, ctx.causal), None, None


cpu_attention.register_autograd(_backward, setup_context=_keep)


def _in_memory(x_BHTK: Tensor) -> tuple[int, int, int, int]:
    rows, heads, tokens, width = x_BHTK.shape
    return rows, tokens, heads, width


def _scaled(q_BHTK: Tensor) -> Tensor:
    """A contiguous copy, divided by sqrt(K): cheaper than dividing the scores, and exact where that is a power of 2."""
    copy = torch.empty_like(q_BHTK, memory_format=torch.contiguous_format)
    return torch.mul(q_BHTK, 1.0 / math.sqrt(q_BHTK.shape[-1]), out=copy)


def _block_sizes(q_BHTK: Tensor) -> tuple[int, int]:
    """Rows and queries of a block."""
    rows, heads, tokens, _ = q_BHTK.shape
    queries = max(1, min(_BLOCK_QUERIES, tokens, _BLOCK_SCORES // (heads * tokens)))
    return max(1, min(rows, _BLOCK_SCORES // (heads * queries * tokens))), queries


def _scratch_numbers(q_BHTK: Tensor) -> int:
    rows, queries = _block_sizes(q_BHTK)
    return rows * q_BHTK.shape[1] * queries * q_BHTK.shape[2]


def _blocks(q_BHTK: Tensor, causal: bool) -> Iterator[tuple[slice, slice, slice]]:
    """Rows, queries, and the keys that these may see."""
    rows, queries = _block_sizes(q_BHTK)
    tokens = q_BHTK.shape[2]
    for row in range(0, len(q_BHTK), rows):
        for query in range(0, tokens, queries):
            last = min(query + queries, tokens)
            yield slice(row, row + rows), slice(query, last), slice(0, last if causal else tokens)


def _part(mask_B1TT: Tensor | None, rows: slice, queries: slice, keys: slice) -> Tensor | None:
    if mask_B1TT is None:
        return None
    own_rows = rows if len(mask_B1TT) > 1 else slice(None)
    return mask_B1TT[own_rows, :, queries if mask_B1TT.shape[2] > 1 else slice(None), keys]


def _shares(q_nHRK: Tensor, k_nHSK: Tensor, mask_n1RS: Tensor | None, causal: bool, scratch: Tensor) -> Tensor:
    """Softmax of the scores, [n, H, R, S], in the memory of `scratch`."""
    scores = _times(q_nHRK, k_nHSK.transpose(-1, -2), out=scratch)
    queries = q_nHRK.shape[2]
    if causal:  # the keys before these queries' own are seen by all of them
        scores[..., -queries:] += scores.new_full((queries, queries), -math.inf).triu_(1)
    if mask_n1RS is not None:
        scores.masked_fill_(~mask_n1RS, -math.inf)
    return torch.softmax(scores, -1, out=scores)


def _times(a_nHRS: Tensor, b_nHSK: Tensor, out: Tensor | None = None) -> Tensor:
    """The products of all heads of all rows; `out` is memory for them."""
    rows, heads = a_nHRS.shape[:2]
    shape = (rows * heads, a_nHRS.shape[2], b_nHSK.shape[3])
    memory = a_nHRS.new_empty(shape) if out is None else out[: math.prod(shape)].view(shape)
    products = torch.bmm(a_nHRS.flatten(0, 1), b_nHSK.flatten(0, 1), out=memory)
    return products.view(rows, heads, *shape[1:])
