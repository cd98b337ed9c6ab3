"""This rank's device, and tensors on their way to and from it."""

from __future__ import annotations

import os

import torch

from orchestrator.objectives.protocol import Tensors


def own_device() -> torch.device:
    """This rank's GPU, or the CPU. A rank may see the GPUs of all ranks of its node, or its own alone."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    index = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def to_device(tensors: Tensors, device: torch.device) -> Tensors:
    """A batch on the device; on the CPU the same tensors."""
    if device.type == "cpu":
        return tensors
    return {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in tensors.items()}


def to_host(tensors: Tensors) -> Tensors:
    """Predictions as plain fp32 (integers as they are) on the CPU."""
    return {
        name: (tensor.float() if tensor.is_floating_point() else tensor).detach().cpu()
        for name, tensor in tensors.items()
    }
