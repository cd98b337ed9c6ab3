"""How large a cluster may become: what its autoscaler was told. Read on the head, which has that file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.cluster.view import Machine, ray_node, ready_view
from orchestrator.errors import CapacityError
from orchestrator.job import JobSpec, Workers
from orchestrator.plan import ClusterView, Node, require_capacity, shortage, workers_that_fit
from orchestrator.plan.capacity import workers_on

_OPTION = "--autoscaling-config="
_KUBERAY = "RAY_USAGE_STATS_KUBERAY_IN_USE"


@dataclass(frozen=True)
class NodeType:
    """Machines alike that an autoscaler may start."""

    name: str
    node: Node
    most: int


@dataclass(frozen=True)
class Bounds:
    """What an autoscaler may start besides the head."""

    types: Sequence[NodeType] = ()
    most: int = 0
    """Of all types together."""
    known: bool = True
    """False: there is an autoscaler, and nobody here can say how far it goes."""

    def view(self, workers: Workers, machines: Iterable[Machine]) -> ClusterView:
        """The cluster grown to where it holds the most of such workers, machines of no type of these included."""
        now = ready_view(machines)
        new = [one.node for one in self.types for _ in range(one.most)]
        best = sorted(new, key=lambda node: -workers_on(workers, node))[: self.most]
        shapes = {(one.node.cpus, one.node.gpus) for one in self.types}  # of memory Ray says less than was declared
        others = [node for node in now.nodes if (node.cpus, node.gpus) not in shapes]
        grown = ClusterView(nodes=[*others, *best] or now.nodes, source="ray")
        return grown if workers_that_fit(workers, grown) > workers_that_fit(workers, now) else now


def require_capacity_ever(job: JobSpec, machines: Sequence[Machine], ask: Callable[[], Bounds | None]) -> None:
    """Refuse a job whose smallest group would not fit the cluster if it were empty, and grown as far as it may.

    Raises:
        CapacityError: what was asked, and what there is at most.
    """
    now = ready_view(machines)
    if workers_that_fit(job.training.workers, now) >= job.training.workers.min:
        return
    bounds = ask()
    if bounds is None:
        require_capacity(job, now)
        return
    largest = bounds.view(job.training.workers, machines)
    if bounds.known and workers_that_fit(job.training.workers, largest) < job.training.workers.min:
        raise CapacityError(
            f"{shortage(job, largest)}, which is all that its autoscaler may start",
            fix="lower train.workers.min (or its cpus and gpus), or raise max_workers in the cluster's file",
        )


def declared() -> dict[str, Any] | None:
    """On the head: the bounds of this cluster's autoscaler as plain data; None where it has none."""
    import ray

    gcs = ray.get_runtime_context().gcs_address
    for options in _monitors():
        path = next((word.removeprefix(_OPTION) for word in options if word.startswith(_OPTION)), None)
        if path is not None and f"--gcs-address={gcs}" in options:
            return read_config(Path(path).expanduser())
    return {"known": False} if os.environ.get(_KUBERAY) else None


def read_config(path: Path) -> dict[str, Any]:
    """The bounds that a file for `ray up` declares, read by the autoscaler's own code."""
    from ray.autoscaler.v2.instance_manager.config import FileConfigReader

    try:
        config = FileConfigReader(str(path), skip_content_hash=True).get_cached_autoscaling_config()
        found = config.get_node_type_configs().items()
    except Exception:  # noqa: BLE001 - whatever Ray says of it: there is one, and nothing is known of it
        return {"known": False}
    head = config.get_head_node_type()
    types = [
        {"name": str(name), "resources": dict(one.resources), "most": int(one.max_worker_nodes)}
        for name, one in found
        if name != head and one.max_worker_nodes
    ]
    return {"known": True, "types": types, "most": int(config.get_max_num_worker_nodes() or 0)}


def bounds_from(data: Mapping[str, Any] | None) -> Bounds | None:
    """Of what `declared` says; a type whose machines it does not know makes all of it unknown."""
    if data is None:
        return None
    if not data["known"] or any(not one["resources"] for one in data["types"]):
        return Bounds(known=False)
    types = [NodeType(one["name"], ray_node(one["resources"]), one["most"]) for one in data["types"]]
    return Bounds(types, data["most"])


def _monitors() -> Iterable[list[str]]:
    """The command lines of this machine's autoscalers."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if any(word.startswith(_OPTION) for word in words):
                yield words
