"""What there is to run on, as plain data. Imports no Ray: `plan` uses it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestrator.plan import ClusterView, Node
from orchestrator.plan.speed import gpu_by_name

_NVIDIA = Path("/proc/driver/nvidia/gpus")
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_CPUS_PER_GPU = 12.0
"""Of a declared node whose CPUs are not given: what cloud nodes have at least (A100: 12, H100: 24)."""

_ACCELERATOR = "accelerator_type:"


@dataclass(frozen=True)
class Machine:
    """A node of a live cluster."""

    id: str
    """As Ray calls it."""
    has: Node
    """All that it has."""
    free: Node
    """What nobody holds."""
    state: Literal["ready", "leaving", "silent"] = "ready"
    """`leaving`: it is to be taken back; `silent`: Ray still lists it, and nothing answers there."""


def ready_view(machines: Iterable[Machine], *, free: bool = False) -> ClusterView:
    """The machines that stay and answer: all that they have, or what nobody holds."""
    ready = [machine for machine in machines if machine.state == "ready"]
    nodes = [machine.free if free else machine.has for machine in ready]
    return ClusterView(nodes=nodes or [Node(cpus=0.0)], source="ray")


def local_view() -> ClusterView:
    """This machine: the cores this process may use, its memory, and NVIDIA's devices that are visible."""
    gpus = _visible_gpus()
    name = _gpu_name() if gpus else None
    node = Node(
        cpus=len(os.sched_getaffinity(0)),
        gpus=gpus,
        memory_bytes=_host_memory(),
        gpu_memory_bytes=_labelled_memory(name),
        gpu_name=name,
    )
    return ClusterView(nodes=[node], source="local")


def declared_view(
    *,
    nodes: int,
    cpus: float | None,
    gpus: float,
    gpu_memory_bytes: int | None = None,
    memory_bytes: int | None = None,
    gpu_name: str | None = None,
) -> ClusterView:
    """A cluster that does not exist yet: `nodes` machines alike.

    Without `cpus` a node has 12 for each GPU; without `gpu_memory_bytes` its GPUs have what their name says.
    """
    node = Node(
        cpus=max(1.0, _CPUS_PER_GPU * gpus) if cpus is None else cpus,
        gpus=gpus,
        memory_bytes=memory_bytes,
        gpu_memory_bytes=gpu_memory_bytes or _labelled_memory(gpu_name),
        gpu_name=gpu_name,
    )
    return ClusterView(nodes=[node] * nodes, source="declared")


def ray_node(resources: Mapping[str, float]) -> Node:
    """A node by what Ray says of it: `memory` is what Ray would hand out, less than all there is."""
    names = [key.removeprefix(_ACCELERATOR) for key in resources if key.startswith(_ACCELERATOR)]
    gpus = resources.get("GPU", 0.0)
    name = names[0] if names and gpus else None
    memory = resources.get("memory")
    return Node(
        cpus=resources.get("CPU", 0.0),
        gpus=gpus,
        memory_bytes=int(memory) if memory else None,
        gpu_memory_bytes=_labelled_memory(name),
        gpu_name=name,
    )


def _labelled_memory(gpu_name: str | None) -> int | None:
    """What a GPU of this name is sold with; drivers show a little more or less."""
    gpu = gpu_by_name(gpu_name) if gpu_name else None
    return int(gpu.memory_gb * 1e9) if gpu else None


def _host_memory() -> int | None:
    """Memory of the machine, or of the container that this process is confined to."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in _CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # `max` is no number: there is no limit
            found.append(int(Path(path).read_text(encoding="ascii")))
    return min(found, default=None)


def _gpu_name() -> str | None:
    """The model of the first GPU, as the driver's files say it."""
    with contextlib.suppress(OSError):
        for device in sorted(_NVIDIA.iterdir()):
            for line in (device / "information").read_text(encoding="utf-8").splitlines():
                key, _, value = line.partition(":")
                if key.strip() == "Model":
                    return value.strip()
    return None


def _visible_gpus() -> int:
    present = len(list(_NVIDIA.iterdir())) if _NVIDIA.is_dir() else 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return present if visible is None else min(present, len([d for d in visible.split(",") if d not in ("", "-1")]))
