"""Low-rank updates of the blocks' matrices, trained instead of these (LoRA; Hu et al. 2021).

A matrix W of a linear layer stays as it is, and the layer computes W x + (alpha / r) B A x. B begins at 0, so that the
model begins where it was. What leaves training is the plain model, with W + (alpha / r) B A.

I inputs, O outputs, R rank.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orchestrator.job_train import Lora
from orchestrator.plan.combine import require_targets

_IN_A_BLOCK = re.compile(r"(?:^|\.)blocks\.\d+\.")
_BASE, _DOWN, _UP = "base", "down_RI", "up_OR"


class LoraLinear(nn.Module):
    """A linear layer that does not learn, and an update of rank R beside it that does."""

    def __init__(self, base: nn.Linear, settings: Lora, generator: torch.Generator) -> None:
        """`down_RI` is uniform within 1 / sqrt(I), as `nn.Linear` draws it and as in the code of the paper."""
        super().__init__()
        self.base = base
        self.scale = settings.alpha / settings.rank
        self.dropout = nn.Dropout(settings.dropout)
        self.enabled = True
        """Off: the layer computes what it did before it was trained."""
        bound = 1.0 / math.sqrt(base.in_features)
        drawn_RI = torch.empty(settings.rank, base.in_features).uniform_(-bound, bound, generator=generator)
        self.down_RI = nn.Parameter(drawn_RI.to(base.weight))
        self.up_OR = nn.Parameter(torch.zeros(base.out_features, settings.rank).to(base.weight))

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        y: Tensor = self.base(x)
        if not self.enabled:
            return y
        return y + self.scale * F.linear(F.linear(self.dropout(x), self.down_RI), self.up_OR)


def add_adapters(model: nn.Module, settings: Lora, *, seed: int) -> nn.Module:
    """Put adapters on the linear layers of a model's blocks, in place, and freeze all else but an encoder's head.

    A head, and the pooler below it, is most often drawn afresh: without training it would tell nothing.

    Raises:
        JobError: `targets` names a layer that the blocks do not have.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and _IN_A_BLOCK.search(name)
    }
    chosen = _chosen(list(layers), settings)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_is_of_head(model, name))
    generator = torch.Generator().manual_seed(seed)
    for name in chosen:
        parent, _, own_name = name.rpartition(".")
        setattr(model.get_submodule(parent), own_name, LoraLinear(layers[name], settings, generator))
    return model


def merged_weights(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the plain model, by its names, from `state`, the whole fp32 weights of a model with adapters.

    Of a model without adapters, `state` itself.
    """
    adapted = {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}
    result = {}
    for name, tensor in state.items():
        module, _, leaf = name.rpartition(".")
        owner = module.removesuffix(f".{_BASE}")
        if owner not in adapted:
            result[name] = tensor
        elif owner != module:  # of the layer itself; its update is in there from now on
            scale = adapted[owner].scale
            result[f"{owner}.{leaf}"] = _merged(tensor, state, owner, scale) if leaf == "weight" else tensor
    return result


@contextlib.contextmanager
def adapters_off(model: nn.Module) -> Iterator[nn.Module]:
    """The model as it was before it was trained: without adapters, and without dropout."""
    adapted = [module for module in model.modules() if isinstance(module, LoraLinear)]
    was_training = model.training
    model.eval()
    for module in adapted:
        module.enabled = False
    try:
        yield model
    finally:
        for module in adapted:
            module.enabled = True
        model.train(was_training)


def _chosen(names: list[str], settings: Lora) -> list[str]:
    """The layers that take an adapter; targets are the last parts of their names."""
    require_targets(settings, {name.rpartition(".")[2] for name in names})
    return [name for name in names if not settings.targets or name.rpartition(".")[2] in settings.targets]


def _is_of_head(model: nn.Module, name: str) -> bool:
    """Whether a parameter stands on an encoder's blocks; a decoder's projection is no such thing."""
    if not isinstance(getattr(model, "backbone", None), nn.Module):
        return False
    return not name.startswith("backbone.") or name.startswith("backbone.pooler.")


def _merged(weight_OI: Tensor, state: Mapping[str, Tensor], owner: str, scale: float) -> Tensor:
    update_OI = state[f"{owner}.{_UP}"].float() @ state[f"{owner}.{_DOWN}"].float()
    return (weight_OI.float() + scale * update_OI).to(weight_OI.dtype)
