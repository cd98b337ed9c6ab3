"""Cross entropy in chunks. Shapes: N tokens, D width, V vocabulary."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from model.loss import IGNORED_TARGET, default_chunk_rows, projected_cross_entropy


def case(rows, *, vocab=37, width=12, ignored=0.3, dtype=torch.float32):
    """x, weight, bias that want gradients, and targets of which a share is ignored."""
    generator = torch.Generator().manual_seed(rows)
    x_ND, weight_VD, bias_V = (
        torch.randn(shape, generator=generator).to(dtype).requires_grad_()
        for shape in ((rows, width), (vocab, width), (vocab,))
    )
    targets_N = torch.randint(vocab, (rows,), generator=generator)
    targets_N[torch.rand(rows, generator=generator) < ignored] = IGNORED_TARGET
    return x_ND, weight_VD, bias_V, targets_N


def reference(x_ND, weight_VD, bias_V, targets_N, smoothing):
    logits_NV = F.linear(x_ND.float(), weight_VD.float(), None if bias_V is None else bias_V.float())
    return F.cross_entropy(logits_NV, targets_N, reduction="sum", label_smoothing=smoothing)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(0, 40),
    chunk_rows=st.integers(1, 50),
    smoothing=st.sampled_from([0.0, 0.1]),
    with_bias=st.booleans(),
    ignored=st.sampled_from([0.0, 0.4, 1.0]),
    upstream=st.sampled_from([1.0, 0.25]),
)
def test_values_and_gradients_are_those_of_whole_logits(rows, chunk_rows, smoothing, with_bias, ignored, upstream):
    x_ND, weight_VD, bias_V, targets_N = case(rows, ignored=ignored)
    inputs = [x_ND, weight_VD] + ([bias_V] if with_bias else [])
    found = projected_cross_entropy(
        x_ND,
        weight_VD,
        targets_N,
        bias_V=bias_V if with_bias else None,
        label_smoothing=smoothing,
        chunk_rows=chunk_rows,
    )
    expected = reference(x_ND, weight_VD, bias_V if with_bias else None, targets_N, smoothing)
    assert_close(found, expected, atol=1e-5, rtol=1e-5)
    ours = torch.autograd.grad(found * upstream, inputs)
    theirs = torch.autograd.grad(expected * upstream, inputs)
    for gradient, wanted in zip(ours, theirs, strict=True):
        assert_close(gradient, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunk_rows", [7, 64, 1000])
def test_bf16_rounds_products_and_not_sums(chunk_rows):
    x_ND, weight_VD, bias_V, targets_N = case(300, width=64, dtype=torch.bfloat16)
    inputs = [x_ND, weight_VD, bias_V]
    found = projected_cross_entropy(x_ND, weight_VD, targets_N, bias_V=bias_V, chunk_rows=chunk_rows)
    expected = reference(x_ND, weight_VD, bias_V, targets_N, 0.0)
    assert found.dtype == torch.float32
    assert_close(found, expected, atol=0, rtol=2e-3)
    for gradient, wanted in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True):
        assert gradient.dtype == torch.bfloat16
        distance = (gradient.float() - wanted.float()).norm() / wanted.float().norm()
        assert float(distance) < 0.02


def test_autocast_multiplies_in_bf16_and_returns_fp32_gradients():
    x_ND, weight_VD, _, targets_N = case(60, width=64)
    with torch.autocast("cpu", torch.bfloat16):
        found = projected_cross_entropy(x_ND, weight_VD, targets_N, chunk_rows=16)
        rounded = projected_cross_entropy(x_ND.bfloat16(), weight_VD.bfloat16(), targets_N, chunk_rows=16)
    assert torch.equal(found, rounded)
    gradients = torch.autograd.grad(found, [x_ND, weight_VD])
    assert [gradient.dtype for gradient in gradients] == [torch.float32, torch.float32]
    wanted = torch.autograd.grad(reference(x_ND, weight_VD, None, targets_N, 0.0), [x_ND, weight_VD])
    for gradient, exact in zip(gradients, wanted, strict=True):
        assert float((gradient - exact).norm() / exact.norm()) < 0.02


def test_only_what_learns_gets_a_gradient():
    x_ND, weight_VD, bias_V, targets_N = case(20)
    frozen_VD = weight_VD.detach()
    projected_cross_entropy(x_ND, frozen_VD, targets_N, bias_V=bias_V).backward()
    assert frozen_VD.grad is None
    assert x_ND.grad is not None
    assert bias_V.grad is not None
    with torch.no_grad():
        assert not projected_cross_entropy(x_ND, weight_VD, targets_N).requires_grad


def test_a_weight_that_is_used_twice_gets_the_gradient_of_both_uses():
    _, weight_VD, _, targets_N = case(20, ignored=0.0)
    ids_N = targets_N.roll(1)
    found, expected = (
        torch.autograd.grad(loss(F.embedding(ids_N, weight_VD)), weight_VD)[0]
        for loss in (
            lambda x_ND: projected_cross_entropy(x_ND, weight_VD, targets_N, chunk_rows=8),
            lambda x_ND: reference(x_ND, weight_VD, None, targets_N, 0.0),
        )
    )
    assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_huge_logits_stay_finite():
    x_ND, weight_VD, _, targets_N = case(20)
    found = projected_cross_entropy(x_ND * 1e4, weight_VD, targets_N)
    (gradient,) = torch.autograd.grad(found, weight_VD)
    assert bool(found.isfinite())
    assert bool(gradient.isfinite().all())


def test_a_target_outside_the_vocabulary_is_refused():
    x_ND, weight_VD, _, targets_N = case(5, ignored=0.0)
    targets_N[2] = 37
    with pytest.raises((RuntimeError, IndexError), match="out of bounds"):
        projected_cross_entropy(x_ND, weight_VD, targets_N)


def test_the_whole_logits_are_never_made(monkeypatch):
    sizes = []

    def softmax(wide_CV, *args, **kwargs):
        sizes.append(len(wide_CV))
        return plain(wide_CV, *args, **kwargs)

    plain = torch.softmax
    monkeypatch.setattr(torch, "softmax", softmax)
    x_ND, weight_VD, _, targets_N = case(100)
    projected_cross_entropy(x_ND, weight_VD, targets_N, chunk_rows=30).backward()
    assert sizes == [30, 30, 30, 10]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_chunks_shrink_with_the_vocabulary_down_to_a_floor(device):
    rows = [default_chunk_rows(device, vocab) for vocab in (2**10, 2**14, 2**17, 2**30)]
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] == 128
