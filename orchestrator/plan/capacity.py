"""How many workers a cluster holds, and what is refused for sure before anything starts. Pure."""

from __future__ import annotations

from orchestrator.errors import CapacityError, JobError
from orchestrator.job import JobSpec, Workers
from orchestrator.plan.values import ClusterView, Node

_GPU_SHARE, _GPU_BASE_BYTES = 0.92, 1_500_000_000
"""What the allocator cannot use for fragmentation; the CUDA context and NCCL's buffers: both rough."""

_HOST_SHARE, _HOST_BASE_BYTES = 0.92, 600_000_000
"""The rest for the kernel and other processes; Python with torch, DeepSpeed and Ray: both rough."""


def workers_on(workers: Workers, node: Node) -> int:
    """Workers that one node holds; a worker never spans two."""
    by_gpus = int(node.gpus // workers.gpus) if workers.gpus else workers.max
    return min(int(node.cpus // workers.cpus), by_gpus)


def workers_that_fit(workers: Workers, view: ClusterView) -> int:
    """Workers that the nodes hold at once, up to the job's max."""
    return min(workers.max, sum(workers_on(workers, node) for node in view.nodes))


def usable_bytes(workers: Workers, view: ClusterView, count: int) -> int | None:
    """Memory that training may fill on the worst placed of `count` workers; None where a node does not tell.

    A worker with GPUs computes on one of them; one without has its share of its node.
    """
    nodes = [node for node in view.nodes if workers_on(workers, node)] or view.nodes
    if workers.gpus:
        sizes = [node.gpu_memory_bytes for node in nodes]
        known = [size for size in sizes if size is not None]
        return max(0, round(min(known) * _GPU_SHARE - _GPU_BASE_BYTES)) if len(known) == len(nodes) else None
    return usable_host_bytes(workers, view, count)


def usable_host_bytes(workers: Workers, view: ClusterView, count: int) -> int | None:
    """Host memory for each of `count` workers where they stand closest; None where a node does not tell."""
    nodes = [node for node in view.nodes if workers_on(workers, node)] or view.nodes
    shares = [
        node.memory_bytes * _HOST_SHARE / max(1, min(count, workers_on(workers, node))) - _HOST_BASE_BYTES
        for node in nodes
        if node.memory_bytes is not None
    ]
    return max(0, round(min(shares))) if len(shares) == len(nodes) else None


def shortage(job: JobSpec, view: ClusterView) -> str:
    """What the job asks for, and what there is."""
    w = job.training.workers
    return (
        f"the job asks for at least {w.min} worker(s) of {w.cpus} CPU(s) and {w.gpus} GPU(s); "
        f"{workers_that_fit(w, view)} fit on {view.describe()}"
    )


def require_capacity(job: JobSpec, view: ClusterView) -> None:
    """Refuse a job whose smallest group of workers does not fit.

    Raises:
        CapacityError: what was asked, what is there.
    """
    if workers_that_fit(job.training.workers, view) < job.training.workers.min:
        raise CapacityError(
            shortage(job, view), fix="lower train.workers.min (or its cpus and gpus), or use a larger cluster"
        )


def require_enough_samples(job: JobSpec, workers: int) -> None:
    """Refuse a step that has no sample for one of its workers.

    Raises:
        JobError: both numbers.
    """
    samples = job.training.batch_tokens // job.model.context
    if samples < workers:
        raise JobError(
            f"train.batch_tokens {job.training.batch_tokens} is {samples} sample(s) of {job.model.context} tokens a "
            f"step, fewer than the {workers} workers that train.workers asks for",
            fix=f"set train.batch_tokens to at least {workers * job.model.context}, or lower train.workers.max",
        )


def require_one_sample(context: int, training_tokens: int) -> None:
    """Refuse a training split that is shorter than one sample and its last target.

    Raises:
        JobError: both numbers.
    """
    if training_tokens <= context:
        raise JobError(
            f"model.context is {context}, but the training split has {training_tokens} tokens: not one sample",
            fix=f"set model.context to at most {max(1, training_tokens - 1)}, or add text",
        )


def require_vocabulary(job: JobSpec, tokenizer_size: int) -> None:
    """Refuse a tokenizer that has more tokens than the model's table has rows.

    Raises:
        JobError: both numbers.
    """
    rows = job.model.vocab_size
    if rows is not None and rows < tokenizer_size:
        raise JobError(
            f"model.vocab_size is {rows}, but the tokenizer has {tokenizer_size} tokens: it does not fit the model",
            fix=f"remove model.vocab_size or set it to at least {tokenizer_size}",
        )
