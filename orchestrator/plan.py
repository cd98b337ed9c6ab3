"""Pure: JobSpec + ClusterView -> Plan. Same job and view, same bytes; starts nothing, reads nothing.

Home of `ClusterView` too, so that a plan is made and tested with no cluster.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from orchestrator.errors import CapacityError, JobError
from orchestrator.job import JobSpec, Workers
from orchestrator.job_section import Section

_ACTIVATION_TOKENS = 2048
"""Tokens of one forward pass that `micro_batch: null` aims at: enough to fill the matmuls, small enough for memory."""

STAGES = ("prepare", "train", "export", "serve")
Stage = Literal["prepare", "train", "export", "serve"]
Status = Literal["done", "todo", "unknown"]


class Node(Section):
    """Free resources of one machine."""

    cpus: float
    gpus: float = 0.0


class ClusterView(Section):
    """What there is to run on: read from a live Ray, from this machine, or declared."""

    nodes: list[Node] = Field(min_length=1)
    source: Literal["ray", "local", "declared"] = "local"

    def describe(self) -> str:
        """For messages: `2 CPUs, 0 GPUs on 1 node(s)`."""
        cpus, gpus = sum(n.cpus for n in self.nodes), sum(n.gpus for n in self.nodes)
        return f"{cpus:g} CPUs and {gpus:g} GPUs on {len(self.nodes)} node(s)"


class StageStatus(Section):
    """Whether a stage's output is in the store already; kept beside the plan, never in it."""

    stage: Stage
    status: Status
    path: str | None = None
    """Relative to the store; null where the name is not known yet."""
    detail: str | None = None


class Plan(Section):
    """What will happen, in numbers. Saved with the run and sent to W&B."""

    format: Literal[1] = 1
    job: str
    workers: int
    """Training processes: as many as fit, up to the job's max."""
    fits: bool
    """Whether the view holds the job's min."""
    cluster: str
    samples_per_step: int
    micro_batch: int
    """Samples in one forward pass of one worker."""
    accumulation: int
    """Forward passes of each worker per step; derived, so that batch_tokens holds on any number of workers."""
    steps: int
    total_tokens: int
    warmup_tokens: int
    vocab_size: int | None
    """null while the tokenizer's size is not known."""
    parameters: int | None
    training_flops: float | None
    state_bytes_per_worker: int | None
    """Weights, gradients and optimizer state of one worker by ZeRO's formula; activations are not in it."""
    warnings: list[str]


def make_plan(job: JobSpec, view: ClusterView, *, vocab_size: int | None = None) -> Plan:
    """Decide workers, micro-batch and accumulation, and count what follows from them.

    `vocab_size` is the tokenizer's size where it is known (a given or a trained tokenizer); a tokenizer that
    is still to be trained counts with the size the job asks for.

    Raises:
        JobError: a step has fewer samples than workers, or the tokenizer has more tokens than the model.
    """
    fit = workers_that_fit(job.training.workers, view)
    fits = fit >= job.training.workers.min
    workers = max(fit, job.training.workers.min)
    samples = job.training.batch_tokens // job.model.context
    if fits and samples < workers:
        raise JobError(
            f"train.batch_tokens {job.training.batch_tokens} is {samples} sample(s) of {job.model.context} tokens a "
            f"step, fewer than the {workers} workers that train.workers asks for",
            fix=f"set train.batch_tokens to at least {workers * job.model.context}, or lower train.workers.max",
        )
    micro_batch, accumulation = cut_step(job, workers)
    if vocab_size is not None:
        require_vocabulary(job, vocab_size)
    vocab = vocab_size or job.model.vocab_size or (job.data.tokenizer.vocab_size if job.data.tokenizer.train else None)
    config = job.model.config(vocab) if vocab else None
    total_tokens = job.training.steps * job.training.batch_tokens
    return Plan(
        job=job.name,
        workers=workers,
        fits=fits,
        cluster=view.describe(),
        samples_per_step=samples,
        micro_batch=micro_batch,
        accumulation=accumulation,
        steps=job.training.steps,
        total_tokens=total_tokens,
        warmup_tokens=min(job.training.schedule.warmup_steps, job.training.steps) * job.training.batch_tokens,
        vocab_size=config.vocab_size if config else None,
        parameters=config.parameters if config else None,
        training_flops=float(total_tokens) * config.training_flops_per_token() if config else None,
        state_bytes_per_worker=_state_bytes(config.parameters, job, workers) if config else None,
        warnings=[] if fits else [shortage(job, view)],
    )


def cut_step(job: JobSpec, workers: int) -> tuple[int, int]:
    """Samples of one forward pass, and forward passes of each worker per step, on so many workers."""
    samples = job.training.batch_tokens // job.model.context
    largest_share = max(1, -(-samples // workers))
    micro_batch = min(job.training.micro_batch or max(1, _ACTIVATION_TOKENS // job.model.context), largest_share)
    return micro_batch, -(-largest_share // micro_batch)


def workers_that_fit(workers: Workers, view: ClusterView) -> int:
    """Workers that the nodes hold at once, up to the job's max; a worker never spans two nodes."""
    per_node = (
        min(int(n.cpus // workers.cpus), int(n.gpus // workers.gpus) if workers.gpus else workers.max)
        for n in view.nodes
    )
    return min(workers.max, sum(per_node))


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


def _state_bytes(parameters: int, job: JobSpec, workers: int) -> int:
    """Bytes a worker holds by ZeRO stage (Rajbhandari et al. 2020, section 3): 16 a parameter unsharded."""
    if job.training.precision == "fp32":
        weights, gradients, optimizer = 4, 4, 8
    else:
        weights, gradients, optimizer = 2, 2, 12
    stage = job.training.zero.stage
    per_parameter = (
        weights / (workers if stage >= 3 else 1)
        + gradients / (workers if stage >= 2 else 1)
        + optimizer / (workers if stage >= 1 else 1)
    )
    return round(parameters * per_parameter)
