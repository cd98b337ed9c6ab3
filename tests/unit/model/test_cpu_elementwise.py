"""Norms and rotations of training on a CPU, against the formulas. Shapes: B rows, T tokens, H heads, K head width."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from model import cpu_elementwise as own
from model.attention import rotary_tables, rotate
from model.config import ModelConfig
from model.mlp import make_norm

EPS = 1e-5
LLAMA = ModelConfig(vocab_size=8, layers=1, width=12, heads=2, kv_heads=2, hidden=8, context=16)


def drawn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype).requires_grad_()


def tables(tokens: int, width: int) -> tuple[Tensor, Tensor]:
    cos, signed_sin = rotary_tables(tokens, width, theta=100.0, device=torch.device("cpu"))
    return cos, signed_sin


def plainly_turned(x_BTHK: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    cos, signed_sin = rotary
    return x_BTHK * cos + x_BTHK.roll(x_BTHK.shape[-1] // 2, -1) * signed_sin


@pytest.mark.parametrize("block", [1, 24, 2**18])
def test_gradients_are_those_of_finite_differences(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(own, "_BLOCK_NUMBERS", block)
    x_BTD, weight_D = drawn(2, 5, 6), drawn(6)
    assert torch.autograd.gradcheck(lambda x, w: own.rms_norm(x, w, EPS), (x_BTD, weight_D))
    assert torch.autograd.gradcheck(lambda x: own.rotate(x, *tables(5, 4)), drawn(2, 5, 3, 4))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 3), st.integers(1, 40), st.sampled_from([2, 6, 320]), st.sampled_from([1, 100, 2**18]))
def test_results_are_those_of_torch_in_any_blocks(rows: int, tokens: int, width: int, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own, "_BLOCK_NUMBERS", block)
        x_BTD, weight_D = drawn(rows, tokens, width, dtype=torch.float32), drawn(width, dtype=torch.float32)
        norm, turned = own.rms_norm(x_BTD, weight_D, EPS), own.rotate(x_BTD[:, :, None], *tables(tokens, width))
    assert_close(norm, F.rms_norm(x_BTD, (width,), weight_D, EPS))
    assert_close(turned, plainly_turned(x_BTD[:, :, None], tables(tokens, width)))


def test_bf16_is_rounded_no_more_than_by_torch() -> None:
    x_BTD, weight_D, slope_BTD = (drawn(*shape, dtype=torch.bfloat16) for shape in ((4, 99, 320), (320,), (4, 99, 320)))
    doubles = [x.detach().double().requires_grad_() for x in (x_BTD, weight_D)]
    right = F.rms_norm(doubles[0], (320,), doubles[1], EPS)
    rights = (right, *torch.autograd.grad(right, doubles, slope_BTD.double()))
    found = own.rms_norm(x_BTD, weight_D, EPS)
    theirs = F.rms_norm(x_BTD, (320,), weight_D, EPS)
    for result, limit, wanted in zip(
        (found, *torch.autograd.grad(found, (x_BTD, weight_D), slope_BTD)),
        (theirs, *torch.autograd.grad(theirs, (x_BTD, weight_D), slope_BTD)),
        rights,
        strict=True,
    ):
        assert (result.double() - wanted).norm() < 1.01 * (limit.double() - wanted).norm()


def test_strided_inputs_and_slopes_are_taken() -> None:
    x_TBD = drawn(5, 4, 12)
    x_BTD, weight_D = x_TBD.transpose(0, 1)[::2], drawn(12)
    # The slope of a sum is one number, expanded.
    found = torch.autograd.grad(own.rms_norm(x_BTD, weight_D, EPS).sum(), (x_TBD, weight_D))
    assert_close(found, torch.autograd.grad(F.rms_norm(x_BTD, (12,), weight_D, EPS).sum(), (x_TBD, weight_D)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_modules_train_with_them_and_evaluate_as_they_train(dtype: torch.dtype) -> None:
    norm = make_norm(LLAMA).to(dtype)
    x_BTD = drawn(2, 5, 12, dtype=dtype)
    trained, turned = norm(x_BTD), rotate(x_BTD[:, :, None], tables(5, 12))
    assert {"_RMSNormBackward", "_RotationBackward"} == {type(y.grad_fn).__name__ for y in (trained, turned)}
    with torch.no_grad():
        assert_close(norm(x_BTD), trained, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)
        assert_close(rotate(x_BTD[:, :, None], tables(5, 12)), turned, rtol=1e-2, atol=1e-6)


def test_compilers_are_given_the_plain_code() -> None:
    norm = make_norm(LLAMA)
    graphs = []

    def see(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    x_BTD = drawn(2, 5, 12, dtype=torch.float32)
    assert_close(torch.compile(norm, backend=see, fullgraph=True)(x_BTD), norm(x_BTD))
    assert "rms_norm" in graphs[0].code
    assert "autograd" not in graphs[0].code
