"""Memory that pods ask for: what the plan says one worker takes is in it."""

from __future__ import annotations

import pytest

from orchestrator.cluster.view import declared_view
from orchestrator.job import JobSpec
from orchestrator.kubernetes.sizes import head_size, serving_group, training_group
from orchestrator.plan import Plan, make_plan


def job_of(width: int = 64, **train: object) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "tiny",
            "data": {"sources": [{"path": "s3://texts/all"}], "tokenizer": {"train": "bpe"}},
            "model": {"layers": 2, "width": width, "heads": 2, "context": 64},
            "train": {"steps": 10, "batch_tokens": 64 * 64, **train},
            "serve": {"replicas": {"min": 0, "max": 3}, "cpus": 2},
        }
    )


def plan_of(job: JobSpec) -> Plan:
    asked = job.training.workers
    return make_plan(job, declared_view(nodes=asked.max, cpus=asked.cpus, gpus=asked.gpus))


def test_a_pod_holds_what_its_workers_take() -> None:
    job = job_of(width=2048, workers={"min": 4})
    plan = plan_of(job)
    assert plan.memory_per_worker is not None
    for per_pod in (1, 2, 4):
        group = training_group(job, plan, per_pod)
        assert group.size.memory_bytes - group.size.shared_bytes > per_pod * plan.memory_per_worker.peak
        assert (group.least, group.size.cpus) == (4 // per_pod, per_pod)


def test_offloaded_state_is_in_the_hosts_memory() -> None:
    kept, offloaded = (
        training_group(job, plan_of(job), 1).size.memory_bytes
        for offload in ("off", "cpu")
        for job in [
            job_of(
                width=2048, zero={"stage": 2, "offload": {"optimizer": offload}}, workers={"gpus": 1}, precision="bf16"
            )
        ]
    )
    assert offloaded > kept


@pytest.mark.parametrize(("asked", "pods", "cpus"), [(1, 5, 1), (2, 3, 2), (5, 1, 5), (9, 1, 5)])
def test_workers_that_share_a_pod(asked: int, pods: int, cpus: int) -> None:
    job = job_of(workers={"min": 5})
    group = training_group(job, plan_of(job), asked)
    assert (group.least, group.most, group.size.cpus) == (pods, pods, cpus)


def test_larger_models_need_larger_heads_and_replicas() -> None:
    small, large = job_of(), job_of(width=4096)
    assert head_size(plan_of(large)).memory_bytes > head_size(plan_of(small)).memory_bytes
    one, other = (serving_group(job, plan_of(job)) for job in (small, large))
    assert other.size.memory_bytes > one.size.memory_bytes
    assert (one.least, one.most, one.size.cpus, one.size.gpus) == (0, 3, 2, 0)
