"""Optimizers: the papers' arithmetic, who decays, and the same updates for parameters and for one vector."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from orchestrator.job_train import Optimizer
from orchestrator.train.engine.flat import FlatWeights
from orchestrator.train.optimizers import (
    Kind,
    MuonBesideAdamW,
    flat_optimizer,
    module_optimizer,
    trained_parameters,
)

NAMES = ("adamw", "sgd", "adagrad", "lion", "muon")


class Net(nn.Module):
    """An embedding, two layers in a row, a norm and a head; the head's bias is of an odd size."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)


def net() -> Net:
    torch.manual_seed(0)
    made = Net()
    for p in made.parameters():
        nn.init.normal_(p)
    return made


def settings(name: str, **more: float) -> Optimizer:
    return Optimizer(name=name, **{"learning_rate": 0.01, "weight_decay": 0.5, **more})  # type: ignore[arg-type]


def gradients(step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(p.shape, generator=generator) for p in net().parameters()]


def test_each_parameter_has_its_kind_and_frozen_ones_have_none() -> None:
    model = net()
    model.head.bias.requires_grad_(False)
    matrices = {"blocks.0.weight", "blocks.1.weight"}
    kinds = {name: kind for name, _, kind in trained_parameters(model)}
    assert {name for name, kind in kinds.items() if kind is Kind.LAYER_MATRIX} == matrices
    assert {name for name, kind in kinds.items() if kind is Kind.MATRIX} == {"embed.weight", "head.weight"}
    assert {name for name, kind in kinds.items() if kind is Kind.VECTOR} == {
        "blocks.0.bias", "blocks.1.bias", "norm.weight", "norm.bias"
    }  # fmt: skip


def test_a_list_of_tables_and_a_convolution_are_no_layer_matrices() -> None:
    model = nn.ModuleDict({"tables": nn.ModuleList([nn.Embedding(3, 2)]), "net": nn.Sequential(nn.Conv2d(1, 2, 3))})
    kinds = {name: kind for name, _, kind in trained_parameters(model)}
    assert kinds == {"tables.0.weight": Kind.MATRIX, "net.0.weight": Kind.MATRIX, "net.0.bias": Kind.VECTOR}


@pytest.mark.parametrize("name", NAMES)
def test_matrices_decay_and_vectors_do_not(name: str) -> None:
    model = net()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = module_optimizer(model, settings(name))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for n, p in model.named_parameters():
        if p.dim() == 1:
            assert torch.equal(p, before[n]), n
        elif name in ("adamw", "lion", "muon"):
            torch.testing.assert_close(p.detach(), before[n] * (1 - 0.01 * 0.5), msg=n)
        else:  # part of the gradient
            assert p.detach().norm() < before[n].norm(), n


@pytest.mark.parametrize("name", NAMES)
def test_one_vector_learns_what_the_parameters_learn(name: str) -> None:
    ours, theirs = net(), net()
    flat = FlatWeights(ours, device=torch.device("cpu"), low_precision=False)
    optimizers = [flat_optimizer(flat, flat.grads_N, settings(name)), module_optimizer(theirs, settings(name))]
    start = flat.master_N.clone()
    for step in range(5):
        for model in (ours, theirs):
            for p, grad in zip(model.parameters(), gradients(step), strict=True):
                p.grad = grad.clone() if p.grad is None else p.grad.copy_(grad)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 0.01 / (step + 1)
            optimizer.step()
    assert (flat.master_N - start).abs().max() > 1e-3
    for (n, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7, msg=n)


@pytest.mark.parametrize("name", NAMES)
def test_state_is_there_before_the_first_step_and_changes_nothing(name: str) -> None:
    model = net()
    before = [p.detach().clone() for p in model.parameters()]
    flat = FlatWeights(model, device=torch.device("cpu"), low_precision=False)
    optimizer = flat_optimizer(flat, flat.grads_N, settings(name))
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    tensors = [value for state in optimizer.state.values() for value in state.values()]
    assert sum(value.numel() for value in tensors) >= len(flat.master_N) - 64 * len(flat.slots)
    assert all(torch.count_nonzero(value) == 0 for value in tensors)
    assert {group["lr"] for group in optimizer.param_groups} == {0.01}


def test_sgd_goes_without_momentum() -> None:
    model = net()
    flat = FlatWeights(model, device=torch.device("cpu"), low_precision=False)
    optimizer = flat_optimizer(flat, flat.grads_N, settings("sgd", momentum=0.0, weight_decay=0.0))
    before = flat.master_N.clone()
    flat.grads_N.fill_(2.0)
    optimizer.step()
    torch.testing.assert_close(flat.master_N, before - 0.02)


def test_sgd_keeps_a_share_of_the_step_before_without_looking_ahead() -> None:
    weight = nn.Parameter(torch.tensor([[1.0, -2.0]], dtype=torch.float64))
    model = nn.Module()
    model.register_parameter("w", weight)
    optimizer = module_optimizer(model, settings("sgd", momentum=0.9))
    w, velocity = [1.0, -2.0], [0.0, 0.0]
    for step in range(4):
        g = [0.5 * (step + 1), -0.3]
        weight.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step()
        for i in range(2):
            velocity[i] = 0.9 * velocity[i] + g[i] + 0.5 * w[i]
            w[i] -= 0.01 * velocity[i]
    assert weight.flatten().tolist() == pytest.approx(w, rel=1e-12)


def test_muon_turns_layer_matrices_and_adamw_the_rest() -> None:
    ours, theirs = net(), net()
    o = settings("muon", momentum=0.95)
    optimizer = module_optimizer(ours, o)
    layers = [p for _, p, kind in trained_parameters(theirs) if kind is Kind.LAYER_MATRIX]
    rest = [p for _, p, kind in trained_parameters(theirs) if kind is not Kind.LAYER_MATRIX]
    muon = torch.optim.Muon(layers, lr=0.01, weight_decay=0.5, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    groups = [
        {"params": [p for p in rest if p.dim() > 1]},
        {"params": [p for p in rest if p.dim() == 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=0.01, weight_decay=0.5, betas=(o.beta1, o.beta2), eps=o.eps)
    for step in range(4):
        for model in (ours, theirs):
            for p, grad in zip(model.parameters(), gradients(step), strict=True):
                p.grad = grad.clone()
        for one in (optimizer, muon, adamw):
            one.step()
    for (n, p), q in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(p, q[1], rtol=1e-6, atol=1e-7, msg=n)


def test_muons_steps_are_as_large_as_adamws() -> None:
    for shape in ((64, 64), (32, 128)):
        model = nn.Sequential(nn.Linear(shape[1], shape[0], bias=False))
        before = model[0].weight.detach().clone()
        optimizer = module_optimizer(model, settings("muon", weight_decay=0.0))
        model[0].weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        optimizer.step()
        rms = (model[0].weight.detach() - before).square().mean().sqrt() / 0.01
        assert 0.1 < float(rms) < 0.4, shape  # AdamW's are 0.2 to 0.4 (Liu et al. 2025)


def test_muon_refuses_a_model_without_layers() -> None:
    with pytest.raises(ValueError, match="optimizer muon is for the matrices of layers in a row"):
        module_optimizer(nn.Linear(3, 3), settings("muon"))


@pytest.mark.parametrize("name", NAMES)
def test_a_restored_optimizer_goes_on_to_the_bit(name: str) -> None:
    straight = net()
    optimizer = module_optimizer(straight, settings(name))

    def train(model: Net, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            for p, grad in zip(model.parameters(), gradients(step), strict=True):
                p.grad = grad.clone()
            optimizer.step()

    train(straight, optimizer, range(3))
    resumed = net()
    resumed.load_state_dict(straight.state_dict())
    again = module_optimizer(resumed, settings(name))
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    if isinstance(again, MuonBesideAdamW):
        assert {"ns_steps" in group for group in again.param_groups} == {True, False}
    train(straight, optimizer, range(3, 6))
    train(resumed, again, range(3, 6))
    assert all(torch.equal(p, q) for p, q in zip(straight.parameters(), resumed.parameters(), strict=True))
