"""Blocks whose activations are made again in the backward pass (Chen et al. 2016): less memory, a third more time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recompute_activations(network: nn.Module) -> None:
    """Let all blocks of a network do so in training; of each only its input is kept.

    Raises:
        ValueError: it has no blocks.
    """
    backbone: Any = getattr(network, "backbone", network)
    if not isinstance(getattr(backbone, "blocks", None), nn.ModuleList):
        raise ValueError(f"{type(network).__name__} has no list `blocks` to recompute")
    backbone.recompute = True


def run_block(block: nn.Module, recompute: bool, *inputs: Any) -> Tensor:
    """A block's output; with `recompute` nothing inside of it is kept for the backward pass."""
    if recompute and torch.is_grad_enabled():
        again: Tensor = checkpoint(block, *inputs, use_reentrant=False)
        return again
    output: Tensor = block(*inputs)
    return output
