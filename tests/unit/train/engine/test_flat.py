"""Weights in one vector: where each lies, and that the model computes with them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from orchestrator.train.engine.flat import FlatWeights, norm_of
from orchestrator.train.optimizers import Kind

CPU = torch.device("cpu")


class Net(nn.Module):
    """Sizes that are odd, a table that is used twice, and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.arange(5.0))
        self.table = nn.Embedding(7, 3)
        self.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))
        self.head = nn.Linear(3, 7, bias=False)
        self.head.weight = self.table.weight
        self.blocks[1].requires_grad_(False)

    def forward(self, ids_N: Tensor) -> Tensor:
        """[N] to [N, 7]."""
        x_N3 = self.table(ids_N)
        for block in self.blocks:
            x_N3 = block(x_N3)
        logits_NV: Tensor = self.head(x_N3)
        return logits_NV + self.bias.sum()


@pytest.mark.parametrize("low_precision", [False, True])
def test_each_parameter_has_a_place_of_its_own(low_precision: bool) -> None:
    model = Net()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    flat = FlatWeights(model, device=CPU, low_precision=low_precision)
    assert [slot.name for slot in flat.slots] == ["blocks.0.weight", "table.weight", "bias", "blocks.0.bias"]
    assert [slot.kind for slot in flat.slots] == [Kind.LAYER_MATRIX, Kind.MATRIX, Kind.VECTOR, Kind.VECTOR]
    assert all(slot.start % 64 == 0 for slot in flat.slots)
    for slot, weight in zip(flat.slots, flat.views(flat.master_N), strict=True):
        assert torch.equal(weight, before[slot.name])
    sections = [flat.section(kind) for kind in Kind]
    assert sections == [(0, 64), (64, 128), (128, len(flat.master_N))]
    assert model.head.weight is model.table.weight


@pytest.mark.parametrize("low_precision", [False, True])
def test_gradients_flow_into_the_vector_and_nowhere_else(low_precision: bool) -> None:
    model = Net()
    flat = FlatWeights(model, device=CPU, low_precision=low_precision)
    model = model.bfloat16() if low_precision else model
    for _ in range(2):
        model(torch.arange(7)).float().square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for slot, grad in zip(flat.slots, flat.views(flat.grads_N), strict=True):
        assert torch.count_nonzero(grad)
        found = gradients[slot.name]
        assert found is not None
        assert found.data_ptr() == grad.data_ptr()
    used = sum(slot.numbers for slot in flat.slots)
    assert torch.count_nonzero(flat.grads_N) <= used
    assert gradients["blocks.1.weight"] is None


@pytest.mark.parametrize("low_precision", [False, True])
def test_the_model_computes_with_what_is_shown(low_precision: bool) -> None:
    model = Net()
    flat = FlatWeights(model, device=CPU, low_precision=low_precision)
    model = model.bfloat16() if low_precision else model
    ids, other_N = torch.arange(7), flat.master_N * 2.0
    first = model(ids)
    flat.show(other_N)
    second = model(ids)
    flat.show(flat.master_N)
    assert torch.equal(model(ids), first)
    assert not torch.equal(first, second)
    flat.master_N.mul_(2.0)
    flat.show(flat.master_N, changed=True)
    assert torch.equal(model(ids), second)


def test_a_norm_of_millions_is_right() -> None:
    values_N = torch.full((1 << 22,), 0.1)
    assert float(norm_of(values_N)) == pytest.approx(0.1 * 2**11, rel=1e-5)
