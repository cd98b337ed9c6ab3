"""Attention of training on a CPU, against the formula in double precision."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from model import cpu_attention as own
from model.attention import Attention, document_mask, rotary_tables
from model.config import ModelConfig


def formula(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    scores = q_BHTK @ k_BHTK.transpose(-1, -2) / math.sqrt(q_BHTK.shape[-1])
    tokens = q_BHTK.shape[2]
    if causal:
        scores = scores.masked_fill(torch.ones(tokens, tokens, dtype=torch.bool).triu(1), -math.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return scores.softmax(-1) @ v_BHTK


def inputs(rows: int, tokens: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    drawn = [torch.randn(rows, tokens, 3, 10, generator=generator) for _ in range(4)]
    return [x.to(dtype).transpose(1, 2) for x in drawn]


def tables(kind: str, rows: int, tokens: int) -> tuple[Tensor, Tensor] | None:
    if kind == "none":
        return None
    cos, signed_sin = rotary_tables(2 * tokens, 10, theta=100.0, device=torch.device("cpu"))
    if kind == "shared":
        return cos[:tokens], signed_sin[:tokens]
    positions_BT = torch.arange(tokens) + torch.arange(rows)[:, None] % tokens
    return cos[positions_BT], signed_sin[positions_BT]


def turned(x_BHTK: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
    if rotary is None:
        return x_BHTK
    cos, signed_sin = (table.transpose(-3, -2) for table in rotary)
    return x_BHTK * cos + x_BHTK.roll(x_BHTK.shape[-1] // 2, -1) * signed_sin


def masks(rows: int, tokens: int) -> dict[str, Tensor | None]:
    segments_BT = torch.arange(rows * tokens).view(rows, tokens) // 5 % 3
    padding_B11T = (torch.arange(tokens) < torch.arange(1, rows + 1)[:, None])[:, None, None]
    return {"none": None, "documents": document_mask(segments_BT), "padding": padding_B11T}


@pytest.mark.parametrize("mask", ["none", "documents", "padding"])
@pytest.mark.parametrize("positions", ["none", "shared", "of each row"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("rows", "tokens"), [(1, 1), (2, 7), (5, 33)])
@pytest.mark.parametrize("block", [1, 200, 2**21])
def test_gives_the_formula_and_its_gradients_in_any_blocks(
    monkeypatch: pytest.MonkeyPatch, block: int, rows: int, tokens: int, causal: bool, positions: str, mask: str
) -> None:
    monkeypatch.setattr(own, "_BLOCK_SCORES", block)
    monkeypatch.setattr(own, "_BLOCK_QUERIES", 16)
    *qkv, slope = inputs(rows, tokens, torch.float32)
    allowed = masks(rows, tokens)[mask]
    rotary = tables(positions, rows, tokens)
    q, k, v = leaves = [x.requires_grad_() for x in qkv]
    found = own.cpu_attention(q, k, v, rotary, allowed, causal)
    q, k, v = doubles = [x.detach().double().requires_grad_() for x in qkv]
    expected = formula(turned(q, rotary), turned(k, rotary), v, allowed, causal)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(found, leaves, slope)
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, doubles, slope.double()), strict=True):
        torch.testing.assert_close(gradient.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("positions", ["none", "shared"])
def test_bf16_is_within_a_hundredth_of_the_formula(positions: str) -> None:
    *qkv, slope = inputs(3, 150, torch.bfloat16)
    rotary = tables(positions, 3, 150)
    q, k, v = leaves = [x.requires_grad_() for x in qkv]
    found = own.cpu_attention(q, k, v, rotary, None, True)
    q, k, v = doubles = [x.detach().double().requires_grad_() for x in qkv]
    expected = formula(turned(q, rotary), turned(k, rotary), v, None, True)
    gradients = torch.autograd.grad(found, leaves, slope)
    wanted = torch.autograd.grad(expected, doubles, slope.double())
    for got, right in zip((found, *gradients), (expected, *wanted), strict=True):
        assert (got.double() - right).norm() < 0.01 * right.norm()


def test_compilers_are_told_the_true_shapes_and_strides() -> None:
    *qkv, _ = inputs(2, 9, torch.float32)
    leaves = [x.requires_grad_() for x in qkv]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    for positions in ("none", "shared"):
        args = (*leaves, tables(positions, 2, 9) or (), None, True)
        torch.library.opcheck(own.attention, args, test_utils=checks)


def test_grouped_heads_train_in_bf16_as_in_evaluation() -> None:
    config = ModelConfig(vocab_size=8, layers=1, width=32, heads=4, kv_heads=2, hidden=8, context=16)
    torch.manual_seed(0)
    attention = Attention(config).bfloat16()
    rotary = rotary_tables(16, 8, theta=10000.0, device=torch.device("cpu"))
    x_BTD = torch.randn(2, 16, 32).bfloat16()
    trained = attention(x_BTD, rotary)
    with torch.no_grad():
        torch.testing.assert_close(trained, attention(x_BTD, rotary), rtol=2e-2, atol=5e-3)
    trained.float().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in attention.parameters())
