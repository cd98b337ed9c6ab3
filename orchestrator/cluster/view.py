"""What there is to run on, as plain data. Imports no Ray: `plan` uses it."""

from __future__ import annotations

import os
from pathlib import Path

from orchestrator.plan import ClusterView, Node


def local_view() -> ClusterView:
    """This machine: the cores this process may use, and NVIDIA's devices that are visible."""
    return ClusterView(nodes=[Node(cpus=len(os.sched_getaffinity(0)), gpus=_visible_gpus())], source="local")


def declared_view(*, nodes: int, cpus: float, gpus: float) -> ClusterView:
    """A cluster that does not exist yet: `nodes` machines of `cpus` and `gpus` each."""
    return ClusterView(nodes=[Node(cpus=cpus, gpus=gpus)] * nodes, source="declared")


def _visible_gpus() -> int:
    devices = Path("/proc/driver/nvidia/gpus")
    present = len(list(devices.iterdir())) if devices.is_dir() else 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return present if visible is None else min(present, len([d for d in visible.split(",") if d not in ("", "-1")]))
