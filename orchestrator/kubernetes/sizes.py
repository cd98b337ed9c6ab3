"""What pods ask for: processors and GPUs are the job's, memory follows from the plan."""

from __future__ import annotations

import math
from dataclasses import dataclass

from orchestrator.job import JobSpec
from orchestrator.plan import Plan

OBJECT_STORE_BYTES = 512 << 20
"""Files travel by name through Ray, not by content."""
_NODE_BYTES = 1 << 30
"""Raylet and agents of a pod."""
_CPU_PROCESS_BYTES = 1 << 30
_GPU_PROCESS_BYTES = 6 << 30
"""Python with torch; with CUDA, its pinned buffers and the staging of batches: rough, and on the safe side."""
_TASK_BYTES = 2 << 30
"""Data is prepared by a task a core."""
_SHARED_BYTES, _SHARED_GPU_BYTES = 1 << 30, 8 << 30
"""/dev/shm: Ray's object store; NCCL's and gloo's segments."""
_HEAD_BYTES = 4 << 30
_EXPORT_COPIES = 3
"""An export holds the weights in fp32, what it writes, and what it proves that with."""
_MARGIN = 1.1


@dataclass(frozen=True)
class PodSize:
    """Requests of a pod's one container, which are its limits too: nobody on the machine can take them away."""

    cpus: int
    gpus: int
    memory_bytes: int
    shared_bytes: int

    def resources(self) -> dict[str, dict[str, str]]:
        """As a container has them."""
        amounts = {"cpu": str(self.cpus), "memory": gibibytes(self.memory_bytes)}
        if self.gpus:
            amounts["nvidia.com/gpu"] = str(self.gpus)
        return {"limits": dict(amounts), "requests": dict(amounts)}


@dataclass(frozen=True)
class Group:
    """Pods alike: how many there are at the start and at most, and the size of each."""

    least: int
    most: int
    size: PodSize


def gibibytes(size: int) -> str:
    """Whole GiB, rounded up."""
    return f"{math.ceil(size / (1 << 30))}Gi"


def head_size(plan: Plan) -> PodSize:
    """The driver, the export and the gateway of a service; no task and no worker."""
    weights = _EXPORT_COPIES * 4 * (plan.parameters or 0)
    shared = _SHARED_BYTES
    return PodSize(2, 0, round(_HEAD_BYTES + shared + weights * _MARGIN), shared)


def training_group(job: JobSpec, plan: Plan, per_pod: int) -> Group:
    """The pods that hold between `train.workers.min` and `max` workers, `per_pod` in each."""
    asked = job.training.workers
    per_pod = min(per_pod, asked.max)
    cpus, gpus = asked.cpus * per_pod, asked.gpus * per_pod
    each = (_GPU_PROCESS_BYTES if gpus else _CPU_PROCESS_BYTES) + (plan.host_bytes_per_worker or 0)
    if not gpus and plan.memory_per_worker is not None:
        each += plan.memory_per_worker.peak
    size = _pod(cpus, gpus, max(each * per_pod, _TASK_BYTES * cpus))
    return Group(-(-asked.min // per_pod), -(-asked.max // per_pod), size)


def serving_group(job: JobSpec, plan: Plan) -> Group:
    """A pod for each replica."""
    asked = job.serve
    weights = (4 if asked.precision == "fp32" else 2) * (plan.parameters or 0)
    process = _GPU_PROCESS_BYTES if asked.gpus else _CPU_PROCESS_BYTES
    # Weights are read and proven in the host's memory before a GPU gets them.
    needed = process + 2 * weights + (0 if asked.gpus else _TASK_BYTES)
    return Group(asked.replicas.min, asked.replicas.max, _pod(asked.cpus, asked.gpus, needed))


def _pod(cpus: int, gpus: int, needed_bytes: int) -> PodSize:
    shared = _SHARED_GPU_BYTES if gpus else _SHARED_BYTES
    return PodSize(cpus, gpus, round((needed_bytes + _NODE_BYTES) * _MARGIN) + shared, shared)
