"""Activations that are made again: the same gradients, and less kept."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from model.config import FamilyName, HeadConfig, ModelConfig, default_hidden
from model.families import build
from model.recompute import recompute_activations


def network(family: FamilyName, dropout: float) -> nn.Module:
    config = ModelConfig(
        family=family,
        vocab_size=61,
        layers=3,
        width=32,
        heads=4,
        kv_heads=4,
        hidden=default_hidden(32, family),
        context=16,
        dropout=dropout,
    )
    return build(config, HeadConfig("mlm" if family == "bert" else "lm")).initialise(1)


def trained(model: nn.Module) -> tuple[list[torch.Tensor], int]:
    """Gradients of a pass, and the numbers that were kept for it."""
    kept = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(torch.arange(32).reshape(2, 16))
        logits = output["logits"] if isinstance(output, dict) else output
        logits.float().square().mean().backward()
    return [p.grad for p in model.parameters() if p.grad is not None], kept


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_gradients_are_the_same_and_less_is_kept(family: FamilyName, dropout: float) -> None:
    plain, again = network(family, dropout), network(family, dropout)
    recompute_activations(again)
    (expected, before), (found, after) = trained(plain), trained(again)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b)
    assert after < before / 2


def test_a_network_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear has no list `blocks`"):
        recompute_activations(nn.Linear(2, 2))
