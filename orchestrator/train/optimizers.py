"""Optimizers from a job's settings, for a model's parameters or for its weights in one vector.

Everything of two dimensions or more takes weight decay, embeddings and heads among it (the recipes of GPT-2 and BERT);
norms, biases and other vectors never do. adamw, lion and muon decay the weights themselves (Loshchilov and Hutter
2019); sgd and adagrad add the decay to the gradient.

N numbers in all weights.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from orchestrator.job_train import Optimizer
from orchestrator.train.elementwise import Adagrad, Lion

if TYPE_CHECKING:
    from orchestrator.train.engine.flat import FlatWeights

_IN_A_LAYER = re.compile(r"(^|\.)\d+\.")


class Kind(enum.IntEnum):
    """What an optimizer makes of a parameter."""

    LAYER_MATRIX = 0
    """A matrix of one of several layers in a row, such as `blocks.3.mlp.up.weight`: what Muon is made for."""
    MATRIX = 1
    """Anything else of two dimensions or more: embeddings, heads, convolutions."""
    VECTOR = 2
    """Norms and biases: no weight decay."""


def trained_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter, Kind]]:
    """The parameters that gradients are wanted of, in the model's order; one that is used twice stands once."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)}
    return [(name, p, _kind(name, p, id(p) in tables)) for name, p in model.named_parameters() if p.requires_grad]


def module_optimizer(model: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """An optimizer over a model's own parameters.

    Raises:
        ValueError: muon, and the model has no layers in a row.
    """
    by_kind: dict[Kind, list[Tensor]] = {kind: [] for kind in Kind}
    for _, parameter, kind in trained_parameters(model):
        by_kind[kind].append(parameter)
    return _optimizer(by_kind[Kind.LAYER_MATRIX], by_kind[Kind.MATRIX], by_kind[Kind.VECTOR], settings)


def flat_optimizer(flat: FlatWeights, grads_N: Tensor, settings: Optimizer) -> torch.optim.Optimizer:
    """An optimizer over a model's fp32 weights in one vector, whose gradient is `grads_N`.

    A kind is one tensor to it, except for muon, which is shown the matrices. Its state is made at once: memory is
    missing here or never, and not halfway through the first update.

    Raises:
        ValueError: as `module_optimizer`.
    """
    if settings.name == "muon":
        pairs = zip(flat.slots, flat.views(flat.master_N), flat.views(grads_N), strict=True)
        layers = [_leaf(weight, grad) for slot, weight, grad in pairs if slot.kind is Kind.LAYER_MATRIX]
    else:
        layers = _section(flat, grads_N, Kind.LAYER_MATRIX)
    matrices, vectors = (_section(flat, grads_N, kind) for kind in (Kind.MATRIX, Kind.VECTOR))
    optimizer = _optimizer(layers, matrices, vectors, settings)
    _make_state(optimizer)
    return optimizer


class MuonBesideAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for the matrices of the layers and AdamW for the rest, as one optimizer.

    Muon's steps are scaled to the size that AdamW's have (Liu et al. 2025), so one learning rate serves both.
    """

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW | None) -> None:
        self._muon, self._adamw = muon, adamw
        super().__init__([*muon.param_groups, *(adamw.param_groups if adamw else [])], {})
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; `closure` computes the loss again, which is returned."""
        loss = self._muon.step(closure)  # type: ignore[no-untyped-call]
        if self._adamw is not None:
            self._adamw.step()
        return loss

    def __setstate__(self, state: dict[str, Any]) -> None:
        """What `load_state_dict` ends with: it makes groups and state anew."""
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        """Let both see the groups and the state of the whole."""
        count = len(self._muon.param_groups)
        self._muon.param_groups, self._muon.state = self.param_groups[:count], self.state
        if self._adamw is not None:
            self._adamw.param_groups, self._adamw.state = self.param_groups[count:], self.state


def _kind(name: str, parameter: nn.Parameter, is_table: bool) -> Kind:
    if parameter.dim() < 2:
        return Kind.VECTOR
    in_a_layer = parameter.dim() == 2 and not is_table and _IN_A_LAYER.search(name)
    return Kind.LAYER_MATRIX if in_a_layer else Kind.MATRIX


def _section(flat: FlatWeights, grads_N: Tensor, kind: Kind) -> list[Tensor]:
    """All weights of a kind as one tensor."""
    first, last = flat.section(kind)
    return [_leaf(flat.master_N[first:last], grads_N[first:last])] if last > first else []


def _leaf(weight: Tensor, grad: Tensor) -> Tensor:
    leaf = nn.Parameter(weight)
    leaf.grad = grad
    return leaf


def _optimizer(
    layers: Sequence[Tensor], matrices: Sequence[Tensor], vectors: Sequence[Tensor], o: Optimizer
) -> torch.optim.Optimizer:
    betas, rate = (o.beta1, o.beta2), o.learning_rate
    if o.name == "muon":
        return _muon(layers, _groups(matrices, vectors, o), o)
    groups = _groups([*layers, *matrices], vectors, o)
    if o.name == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=o.momentum, fused=True)
    if o.name == "adagrad":
        return Adagrad(groups, lr=rate, eps=o.eps)
    if o.name == "lion":
        return Lion(groups, lr=rate, betas=betas)
    return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=o.eps, fused=True)


def _groups(decaying: Sequence[Tensor], vectors: Sequence[Tensor], o: Optimizer) -> list[dict[str, Any]]:
    pairs = ((decaying, o.weight_decay), (vectors, 0.0))
    return [{"params": list(parameters), "weight_decay": decay} for parameters, decay in pairs if parameters]


def _muon(layers: Sequence[Tensor], others: list[dict[str, Any]], o: Optimizer) -> MuonBesideAdamW:
    if not layers:
        raise ValueError(
            "optimizer muon is for the matrices of layers in a row (`blocks.0.`, `blocks.1.`), and the model has none"
        )
    muon = torch.optim.Muon(
        [{"params": list(layers), "weight_decay": o.weight_decay}],
        lr=o.learning_rate,
        momentum=o.momentum,
        adjust_lr_fn="match_rms_adamw",
    )
    betas = (o.beta1, o.beta2)
    adamw = torch.optim.AdamW(others, lr=o.learning_rate, betas=betas, eps=o.eps, fused=True) if others else None
    return MuonBesideAdamW(muon, adamw)


def _make_state(optimizer: torch.optim.Optimizer) -> None:
    """Make the state, all zero, by a step that changes nothing: its rate is 0. Gradients must be 0 too."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for state in optimizer.state.values():
        for value in state.values():
            value.zero_()
