"""JobSpec + ClusterView -> Plan."""

from __future__ import annotations

from typing import Any

from orchestrator.job import JobSpec
from orchestrator.plan.capacity import (
    require_enough_samples,
    require_vocabulary,
    shortage,
    usable_bytes,
    usable_host_bytes,
    workers_that_fit,
)
from orchestrator.plan.choose import Room, choose
from orchestrator.plan.combine import pointless, require_combination
from orchestrator.plan.network import Network, network_of
from orchestrator.plan.sizes import human_bytes
from orchestrator.plan.speed import cost_of, hours_of
from orchestrator.plan.values import ClusterView, Plan, Probe


def make_plan(job: JobSpec, view: ClusterView, *, vocab_size: int | None = None, probe: Probe | None = None) -> Plan:
    """Decide workers, ZeRO stage, micro-batch and accumulation, and count what follows from them.

    `vocab_size` is the tokenizer's size where it is known (a given or a trained tokenizer); a tokenizer that
    is still to be trained counts with the size the job asks for. What a `probe` measured stands in for assumptions.

    Raises:
        JobError: a step has fewer samples than workers, the tokenizer has more tokens than the model, or settings of
            `train` do not go together.
    """
    require_combination(job)
    asked = job.training.workers
    fit = workers_that_fit(asked, view)
    fits = fit >= asked.min
    workers = max(fit, asked.min)
    if fits:
        require_enough_samples(job, workers)
    if vocab_size is not None and job.model.kind != "custom":
        require_vocabulary(job, vocab_size)
    network = network_of(job, vocab_size)
    room = Room(workers, usable_bytes(asked, view, workers), usable_host_bytes(asked, view, workers), probe)
    choice = choose(job, network, room)
    hours, speed = hours_of(job, view, network=network, workers=workers, probe=probe)
    memory = choice.memory
    return Plan(
        job=job.name,
        workers=workers,
        fits=fits,
        cluster=view.describe(),
        zero_stage=choice.stage,
        micro_batch=choice.micro_batch,
        accumulation=choice.accumulation,
        **_counts(job, network),
        state_bytes_per_worker=memory.weights + memory.gradients + memory.optimizer if memory else None,
        memory_per_worker=memory,
        host_bytes_per_worker=choice.host_bytes,
        usable_bytes_per_worker=room.usable_bytes,
        hours=hours,
        cost=cost_of(job, workers, hours),
        speed=speed,
        why=[_workers_said(job, view, workers), *choice.why, *_probed(probe), f"time: {speed}"],
        warnings=[*([] if fits else [shortage(job, view)]), *pointless(job), *choice.warnings],
    )


def _probed(probe: Probe | None) -> list[str]:
    """What memory a probe has found, whatever the plan chose after it."""
    if probe is None or probe.peak_bytes is None:
        return []
    of = "one worker alone" if probe.workers == 1 else f"each of {probe.workers} workers"
    peak = human_bytes(probe.peak_bytes)
    return [f"memory: {of} took {peak} in a probe, at stage {probe.stage} with a micro-batch of {probe.micro_batch}"]


def _counts(job: JobSpec, network: Network | None) -> dict[str, Any]:
    """What follows from the job alone: steps, tokens, parameters, FLOPs."""
    train = job.training
    tokens = train.steps * train.batch_tokens
    return {
        "samples_per_step": train.batch_tokens // job.model.context,
        "steps": train.steps,
        "total_tokens": tokens,
        "warmup_tokens": min(train.schedule.warmup_steps, train.steps) * train.batch_tokens,
        "vocab_size": network.config.vocab_size if network else None,
        "parameters": network.parameters if network else None,
        "trained_parameters": network.trained if network else None,
        "flops_per_token": network.flops_per_token if network else None,
        "training_flops": tokens * network.flops_per_token if network else None,
    }


def _workers_said(job: JobSpec, view: ClusterView, workers: int) -> str:
    asked, fit = job.training.workers, workers_that_fit(job.training.workers, view)
    each = f"of {asked.cpus} CPU(s)" + (f" and {asked.gpus} GPU(s)" if asked.gpus else "")
    if fit < asked.min:
        return f"workers {workers}: the job's min; only {fit} {each} fit on {view.describe()}"
    if workers == asked.max:
        return f"workers {workers}: the job's max, {each}, on {view.describe()}"
    return f"workers {workers}: as many {each} as {view.describe()} hold; the job's max is {asked.max}"
