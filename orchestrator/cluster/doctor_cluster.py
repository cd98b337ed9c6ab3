"""`slipway doctor --address`: every machine of a cluster, and what lies between them."""

from __future__ import annotations

import json
import shlex
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.cluster.doctor_judge import Facts, judge
from orchestrator.cluster.doctor_probe import Probe
from orchestrator.cluster.machines import machines
from orchestrator.cluster.storage_check import StorageCheck
from orchestrator.cluster.view import Machine
from orchestrator.errors import CapacityError, SlipwayError

_START_LIMIT_S = 60.0
_WORK_LIMIT_S = 120.0
_WRITTEN_BYTES = 256 << 20
_SHARE_OF_FREE = 0.02
"""Of what is free, all machines together write no more."""
_JOB_LIMIT_S = 400.0


def examine_cluster(store: Path) -> dict[str, Any]:
    """The document of `doctor --address`, of the Ray that this process has joined: machines, network, checks.

    Sizes are in bytes, speeds in bytes a second, `clock_skew_s` is that of a machine against this one's clock.
    """
    import ray

    seen = machines()
    addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}  # type: ignore[no-untyped-call]
    nodes = [_blank(machine, addresses.get(machine.id, "?")) for machine in seen]
    ready = [node for node in nodes if node["problem"] is None]
    backend = "nccl" if ready and all(m.free.gpus >= 1 for m in seen if m.state == "ready") else "gloo"
    probes = {node["id"]: _probe(node["id"], gpus=backend == "nccl") for node in ready}
    for node in ready:
        _ask_facts(node, probes[node["id"]], store)
    ready = [node for node in ready if node["problem"] is None]
    _measure_storage(ready, probes, store, seen)
    network = _measure_network(ready, probes, backend) if len(ready) > 1 else None
    checks = [vars(check) for check in judge(nodes, network, str(store))]
    for probe in probes.values():
        ray.kill(probe)
    return {"healthy": all(check["ok"] for check in checks), "nodes": nodes, "network": network, "checks": checks}


def examine_through(url: str, store: Path) -> dict[str, Any]:
    """The same by a short job at a dashboard, for a machine that is no part of the cluster.

    Raises:
        CapacityError: the dashboard takes no job, or the job says nothing.
    """
    from orchestrator.cluster.jobs.client import JobsClient
    from orchestrator.cluster.jobs.interpreter import on_the_head
    from orchestrator.cluster.jobs.values import MARK
    from orchestrator.cluster.jobs.watch import wait_until_over

    client, id = JobsClient(url), f"slipway-doctor-{uuid.uuid4().hex[:8]}"
    words = ["-m", "orchestrator.cli", "doctor", "--address", "auto", "--json", "--store", str(store)]
    client.submit(id=id, command=on_the_head(shlex.join(words)), runtime_env={}, metadata={MARK: "doctor"})
    ended = wait_until_over(client, id, limit_s=_JOB_LIMIT_S)
    lines = client.log(ended).strip().splitlines()
    for line in reversed(lines):
        if line.startswith('{"healthy"'):
            document: dict[str, Any] = json.loads(line)
            return document
    last = lines[-1] if lines else ended.message
    raise CapacityError(f"the cluster at {url} could not be examined: {last}", fix=f"ray job logs {id}")


def _blank(machine: Machine, address: str) -> Facts:
    """A machine of which nothing more is known yet."""
    problem = {"ready": None, "leaving": "is to be taken back", "silent": "does not answer"}[machine.state]
    has = machine.has
    return {
        "id": machine.id, "address": address, "host": None, "problem": problem,
        "cpus": has.cpus, "gpus": has.gpus, "gpu_name": has.gpu_name, "memory_bytes": has.memory_bytes,
        "storage_problem": None, "write_bytes_per_s": None, "read_bytes_per_s": None,
    }  # fmt: skip


def _probe(node_id: str, *, gpus: bool) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(Probe).options(num_cpus=0, num_gpus=int(gpus), scheduling_strategy=there).remote()


def _ask_facts(node: Facts, probe: Any, store: Path) -> None:
    """Add what a machine says of itself, and how its clock goes."""
    facts, problem = _told(probe.facts.remote(str(store)), within_s=_START_LIMIT_S)
    node |= facts or {}
    if facts is None:
        node["problem"] = f"runs no Slipway: {problem}"
        return
    halves = [_skew(probe) for _ in range(5)]
    node["clock_error_s"], node["clock_skew_s"] = min(halves)


def _skew(probe: Any) -> tuple[float, float]:
    """Half of the way there and back, and by how much its clock is ahead if both ways take alike."""
    import ray

    began = time.time()
    there = ray.get(probe.now.remote())
    half_s = (time.time() - began) / 2
    return half_s, there - (began + half_s)


def _measure_storage(nodes: Sequence[Facts], probes: dict[str, Any], store: Path, seen: Sequence[Machine]) -> None:
    """All write at the same time, as they do at a checkpoint."""
    try:
        StorageCheck(store).require(seen)
        store.mkdir(parents=True, exist_ok=True)
    except (SlipwayError, OSError) as error:
        for node in nodes:
            node["storage_problem"] = error.message if isinstance(error, SlipwayError) else str(error)
        return
    free = min((node["disk_free_bytes"] for node in nodes), default=0)
    size = min(_WRITTEN_BYTES, int(free * _SHARE_OF_FREE / max(1, len(nodes))))
    asked = [(node, probes[node["id"]].storage.remote(str(store), size)) for node in nodes]
    for node, ref in asked:
        speeds, problem = _told(ref, within_s=_WORK_LIMIT_S)
        node.update(speeds or {"storage_problem": problem})


def _measure_network(nodes: Sequence[Facts], probes: dict[str, Any], backend: str) -> Facts:
    """An all-reduce over all machines; what the slowest of them has seen."""
    found: Facts = {"backend": backend, "machines": len(nodes), "problem": None, "bytes_per_s": None, "latency_s": None}
    first = nodes[0]
    port, problem = _told(probes[first["id"]].free_port.remote(), within_s=_START_LIMIT_S)
    meeting = f"{first['address']}:{port}"
    if problem is None:
        met = [
            probes[node["id"]].meet.remote(meeting, rank, len(nodes), backend=backend, address=node["address"])
            for rank, node in enumerate(nodes)
        ]
        _, problem = _all_told(met)
    if problem is None:
        answers, problem = _all_told([probes[node["id"]].reduce.remote(backend) for node in nodes])
    if problem is not None:
        return {**found, "problem": problem}
    found["bytes_per_s"] = min(answer["bytes_per_s"] for answer in answers)
    found["latency_s"] = max(answer["latency_s"] for answer in answers)
    return found


def _all_told(refs: Sequence[Any]) -> tuple[list[Any], str | None]:
    """What all machines answer; the first reason why one does not."""
    told = [_told(ref, within_s=_WORK_LIMIT_S) for ref in refs]
    return [answer for answer, _ in told], next((said for _, said in told if said is not None), None)


def _told(ref: Any, *, within_s: float) -> tuple[Any, str | None]:
    """What a machine answers; else why it does not, in a line."""
    import ray

    try:
        return ray.get(ref, timeout=within_s), None
    except ray.exceptions.GetTimeoutError:
        return None, f"no answer within {within_s:.0f} s"
    except ray.exceptions.RayError as error:
        lines = str(error).strip().splitlines()
        return None, lines[-1].strip() if lines else type(error).__name__
