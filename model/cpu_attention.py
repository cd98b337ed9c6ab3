"""Attention on a CPU in training: products of whole blocks of scores, which matrix kernels are made for.

torch's flash attention multiplies tiles of 32 to 64 rows here, at a tenth of the speed of a batched product (bf16).
No more is kept for the backward pass than flash attention keeps: scores are made again, block by block.

Shapes: B rows (n of them in a block), T queries and keys, H heads, K head width; R queries of a block, S keys they see.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from model.cpu_elementwise import over_heads, part_of, turn, wide_type

_BLOCK_SCORES = 2**21
"""Scores of a block: they stay in the cache between the operations on them."""
_BLOCK_QUERIES = 128
"""Causal attention never makes the scores of a block's later keys; smaller blocks spare more and multiply slower."""


def cpu_attention(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTK: Tensor,
    rotary: Sequence[Tensor] | None,
    mask_B1TT: Tensor | None,
    causal: bool,
) -> Tensor:
    """Attention over `q_BHTK`'s own tokens, differentiable once: [B, H, T, K], in memory [B, T, H, K].

    Turned queries and keys, and scores, are rounded to the inputs' type; sums within a product or a softmax are fp32.

    Args:
        rotary: cosines and signed sines, [T, 1, K] or [B, T, 1, K]: queries and keys are turned by them first.
        mask_B1TT: bool, True where a query may look (each at one key at least); broadcasts over queries and heads.
        causal: each query sees itself and what is before it, `mask_B1TT` apart.
    """
    y_BHTK: Tensor = attention(q_BHTK, k_BHTK, v_BHTK, rotary or (), mask_B1TT, causal)[0]
    return y_BHTK


@torch.library.custom_op("slipway::cpu_attention", mutates_args=())
def attention(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTK: Tensor,
    rotary: Sequence[Tensor],
    mask_B1TT: Tensor | None,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`cpu_attention`, and contiguous for its backward pass: q (turned, scaled), k (turned) and v."""
    q, k, v = (x.new_empty(x.shape) for x in (q_BHTK, k_BHTK, v_BHTK))
    tables = over_heads(rotary)
    # Cheaper than dividing the scores, and exact where sqrt(K) is a power of 2.
    turn(q_BHTK, tables, scale=1.0 / math.sqrt(q.shape[-1]), out=q)
    turn(k_BHTK, tables, out=k)
    v.copy_(v_BHTK)
    y_BTHK, memory = q.new_empty(_in_memory(q)), _Memory(q)
    for rows in _row_blocks(q):
        for queries, keys in _query_blocks(q, causal):
            part = _part(mask_B1TT, rows, queries, keys)
            shares = _shares(q[rows, :, queries], k[rows, :, keys], part, causal, memory.scores)
            y_BTHK[rows, queries] = _times(shares, v[rows, :, keys], memory.products).transpose(1, 2)
    return y_BTHK.transpose(1, 2), q, k, v


@torch.library.custom_op("slipway::cpu_attention_backward", mutates_args=())
def attention_backward(
    slope_BHTK: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rotary: Sequence[Tensor],
    mask_B1TT: Tensor | None,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `attention`'s inputs from that of its first result; q, k and v are the others."""
    slope = slope_BHTK.contiguous()
    dq, dk, dv = (q.new_empty(_in_memory(q)).transpose(1, 2) for _ in range(3))
    tables, scale = over_heads(rotary, back=True), 1.0 / math.sqrt(q.shape[-1])
    memory = _Memory(q, sums=3)
    for rows in _row_blocks(q):
        q_n, k_n, v_n, slope_n, dq_n = q[rows], k[rows], v[rows], slope[rows], dq[rows]
        sum_k, sum_v, addend = memory.sums[:, : len(q_n)]
        own = None if tables is None else part_of(tables, rows, slice(None))
        # The last queries of all come first: they see every key, so that they begin the sums.
        for number, (queries, keys) in enumerate(reversed(list(_query_blocks(q, causal)))):
            # Each is a factor twice, and a product copies what is not contiguous.
            q_R, k_S, slope_R = (
                x[:, :, chosen].contiguous() for x, chosen in ((q_n, queries), (k_n, keys), (slope_n, queries))
            )
            more = addend[:, :, keys] if number else None
            shares = _shares(q_R, k_S, _part(mask_B1TT, rows, queries, keys), causal, memory.scores)
            _add(_times(shares.transpose(-1, -2), slope_R, memory.products), sum_v[:, :, keys], more)
            slopes = _times(slope_R, v_n[:, :, keys].transpose(-1, -2), memory.slopes)
            torch.ops.aten._softmax_backward_data.out(slopes, shares, -1, slopes.dtype, grad_input=slopes)
            dq_R = _times(slopes, k_S, memory.products)
            own_R = None if own is None else part_of(own, slice(None), queries)
            turn(dq_R, own_R, scale=scale, out=dq_n[:, :, queries])
            _add(_times(slopes.transpose(-1, -2), q_R, memory.products), sum_k[:, :, keys], more)
        turn(sum_k, own, out=dk[rows])  # has its scale from that of q
        dv[rows] = sum_v
    return dq, dk, dv


@attention.register_fake
def _(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTK: Tensor,
    rotary: Sequence[Tensor],
    mask_B1TT: Tensor | None,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q, k, v = (x.new_empty(x.shape) for x in (q_BHTK, k_BHTK, v_BHTK))
    return q.new_empty(_in_memory(q)).transpose(1, 2), q, k, v


@attention_backward.register_fake
def _(
    slope_BHTK: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rotary: Sequence[Tensor],
    mask_B1TT: Tensor | None,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    one, two, three = (q.new_empty(_in_memory(q)).transpose(1, 2) for _ in range(3))
    return one, two, three


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    *_, rotary, mask_B1TT, ctx.causal = inputs
    ctx.save_for_backward(*output[1:], mask_B1TT, *rotary)
    ctx.set_materialize_grads(False)  # of q, k and v there are none


def _backward(ctx: Any, slope_BHTK: Tensor, *_: Any) -> tuple[Any, ...]:
    q, k, v, mask_B1TT, *rotary = ctx.saved_tensors
    slopes = attention_backward(slope_BHTK, q, k, v, rotary, mask_B1TT, ctx.causal)
    return *slopes, [None] * len(rotary), None, None


attention.register_autograd(_backward, setup_context=_keep)


class _Memory:
    """What all blocks share, as large as any wants: fresh pages cost more than what is done in them."""

    def __init__(self, q: Tensor, *, sums: int = 0) -> None:
        rows, queries = _block_sizes(q)
        _, heads, tokens, width = q.shape
        self.scores, self.slopes = q.new_empty((2, rows * heads * queries * tokens))
        self.products = q.new_empty(rows * heads * tokens * width)
        # Sums over blocks of queries are fp32, whatever the type of the products.
        self.sums = q.new_empty((sums, rows, heads, tokens, width), dtype=wide_type(q.dtype))


def _in_memory(x_BHTK: Tensor) -> tuple[int, int, int, int]:
    rows, heads, tokens, width = x_BHTK.shape
    return rows, tokens, heads, width


def _block_sizes(q_BHTK: Tensor) -> tuple[int, int]:
    """Rows and queries of a block."""
    rows, heads, tokens, _ = q_BHTK.shape
    queries = max(1, min(_BLOCK_QUERIES, tokens, _BLOCK_SCORES // (heads * tokens)))
    blocks = math.ceil(rows / max(1, _BLOCK_SCORES // (heads * queries * tokens)))
    return math.ceil(rows / blocks), queries


def _row_blocks(q_BHTK: Tensor) -> Iterator[slice]:
    rows, _ = _block_sizes(q_BHTK)
    for row in range(0, len(q_BHTK), rows):
        yield slice(row, row + rows)


def _query_blocks(q_BHTK: Tensor, causal: bool) -> Iterator[tuple[slice, slice]]:
    """Queries, and the keys that these may see."""
    _, queries = _block_sizes(q_BHTK)
    tokens = q_BHTK.shape[2]
    for query in range(0, tokens, queries):
        last = min(query + queries, tokens)
        yield slice(query, last), slice(0, last if causal else tokens)


def _part(mask_B1TT: Tensor | None, rows: slice, queries: slice, keys: slice) -> Tensor | None:
    if mask_B1TT is None:
        return None
    own_rows = rows if len(mask_B1TT) > 1 else slice(None)
    return mask_B1TT[own_rows, :, queries if mask_B1TT.shape[2] > 1 else slice(None), keys]


def _add(products: Tensor, sums: Tensor, addend: Tensor | None) -> None:
    """Begin `sums` with `products`, or add them by way of `addend`, in the type of the sums."""
    if addend is None:
        sums.copy_(products)
    else:
        sums.add_(addend.copy_(products))


def _shares(q_nHRK: Tensor, k_nHSK: Tensor, mask_n1RS: Tensor | None, causal: bool, scratch: Tensor) -> Tensor:
    """Softmax of the scores, [n, H, R, S], in the memory of `scratch`."""
    scores = _times(q_nHRK, k_nHSK.transpose(-1, -2), scratch)
    queries = q_nHRK.shape[2]
    if causal:  # the keys before these queries' own are seen by all of them
        scores[..., -queries:] += scores.new_full((queries, queries), -math.inf).triu_(1)
    if mask_n1RS is not None:
        scores.masked_fill_(~mask_n1RS, -math.inf)
    return torch.softmax(scores, -1, out=scores)


def _times(a_nHRS: Tensor, b_nHSK: Tensor, scratch: Tensor) -> Tensor:
    """The products of all heads of all rows, in the memory of `scratch`."""
    rows, heads = a_nHRS.shape[:2]
    shape = (rows * heads, a_nHRS.shape[2], b_nHSK.shape[3])
    memory = scratch[: math.prod(shape)].view(shape)
    products = torch.bmm(a_nHRS.flatten(0, 1), b_nHSK.flatten(0, 1), out=memory)
    return products.view(rows, heads, *shape[1:])
