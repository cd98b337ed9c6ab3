"""The plan: pure, and every number in it follows from the job and the view."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.load.order import deal, micro_batches
from orchestrator.errors import CapacityError, JobError
from orchestrator.job import JobSpec, Workers
from orchestrator.plan import (
    ClusterView,
    Node,
    Plan,
    cut_step,
    make_plan,
    require_capacity,
    require_vocabulary,
    workers_that_fit,
)

MakeJob = Callable[..., JobSpec]


def view(*nodes: tuple[float, float]) -> ClusterView:
    """Nodes of (CPUs, GPUs)."""
    return ClusterView(nodes=[Node(cpus=cpus, gpus=gpus) for cpus, gpus in nodes])


def test_the_same_job_and_view_give_the_same_bytes(tiny_job: MakeJob) -> None:
    first, second = (make_plan(tiny_job(), view((4, 0))).model_dump_json() for _ in range(2))
    assert first == second
    assert Plan.model_validate_json(first).model_dump_json() == first


def test_what_a_plan_says_follows_from_the_job(tiny_job: MakeJob) -> None:
    job = tiny_job("train.schedule.warmup_steps=2", "train.workers={min: 1, max: 4}", "data.tokenizer.vocab_size=300")
    plan = make_plan(job, view((3, 0)))
    config = job.model.config(300)
    expected = {
        "job": "tiny",
        "workers": 3,
        "fits": True,
        "cluster": "3 CPUs and 0 GPUs on 1 node(s)",
        "samples_per_step": 8,
        "zero_stage": 2,
        "micro_batch": 3,
        "accumulation": 1,
        "steps": 10,
        "total_tokens": 1280,
        "warmup_tokens": 256,
        "vocab_size": 300,
        "parameters": config.parameters,
        "trained_parameters": config.parameters,
        "flops_per_token": float(config.training_flops_per_token()),
        "training_flops": 1280.0 * config.training_flops_per_token(),
        "hours": None,
        "cost": None,
    }
    assert {name: getattr(plan, name) for name in expected} == expected
    assert plan.memory_per_worker is not None
    assert plan.memory_per_worker.optimizer == pytest.approx(config.parameters * 12 / 3, abs=12)


def test_the_size_of_a_given_tokenizer_counts_where_it_is_known(tiny_job: MakeJob) -> None:
    job = tiny_job("data.tokenizer={path: tokenizer.json}")
    unknown = make_plan(job, view((1, 0)))
    assert (unknown.vocab_size, unknown.parameters, unknown.training_flops) == (None, None, None)
    assert make_plan(job, view((1, 0)), vocab_size=999).vocab_size == 999


@pytest.mark.parametrize(
    ("workers", "nodes", "expected"),
    [
        ({"min": 1, "max": 2}, [(4, 0)], 2),
        ({"min": 1, "max": 8}, [(4, 0)], 4),
        ({"min": 1, "max": 8}, [(2.9, 0)], 2),
        ({"min": 1, "max": 8, "cpus": 2}, [(3, 0), (3, 0)], 2),  # a worker never spans two nodes
        ({"min": 1, "max": 8, "cpus": 4}, [(3, 0), (3, 0)], 0),
        ({"min": 1, "max": 64, "cpus": 8, "gpus": 1}, [(64, 8), (64, 4)], 12),
        ({"min": 1, "max": 64, "cpus": 16, "gpus": 1}, [(64, 8)], 4),
        ({"min": 1, "max": 64, "gpus": 2}, [(64, 7)], 3),
        ({"min": 1, "max": 64, "gpus": 1}, [(64, 0)], 0),
        ({"min": 1, "max": 3, "gpus": 1}, [(8, 2), (8, 0), (8, 2)], 3),
    ],
)
def test_workers_that_fit(workers: dict[str, int], nodes: list[tuple[float, float]], expected: int) -> None:
    assert workers_that_fit(Workers(**workers), view(*nodes)) == expected


@given(
    samples=st.integers(1, 200), micro_batch=st.none() | st.integers(1, 300), context=st.sampled_from([2, 256, 4096])
)
@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_the_micro_batches_cover_the_largest_share(
    tiny_job: MakeJob, workers: int, samples: int, micro_batch: int | None, context: int
) -> None:
    base = tiny_job()
    train = base.train.model_copy(update={"batch_tokens": samples * context, "micro_batch": micro_batch})
    job = base.model_copy(update={"train": train, "model": base.model.model_copy(update={"context": context})})
    size, count = cut_step(job, workers)
    shares = [deal(samples, rank, workers) for rank in range(workers)]
    largest = max(last - first for first, last in shares)
    assert size * count >= largest > size * (count - 1)
    assert all(last - first <= size for share in shares for first, last in micro_batches(*share, count))
    if micro_batch is None:
        assert size == 1 or size * context <= 2048
    else:
        assert size <= micro_batch


def test_more_workers_than_the_cluster_holds(tiny_job: MakeJob) -> None:
    job = tiny_job("train.workers={min: 3, max: 4, cpus: 2, gpus: 1}")
    said = "the job asks for at least 3 worker(s) of 2 CPU(s) and 1 GPU(s); 1 fit on 8 CPUs and 1 GPUs on 2 node(s)"
    with pytest.raises(CapacityError, match=re.escape(said)) as caught:
        require_capacity(job, view((4, 1), (4, 0)))
    assert caught.value.exit_code == 4
    plan = make_plan(job, view((4, 1), (4, 0)))
    assert (plan.fits, plan.workers, plan.warnings[0]) == (False, 3, said)
    require_capacity(job, view((6, 3)))


def test_fewer_samples_in_a_step_than_workers(tiny_job: MakeJob) -> None:
    job = tiny_job("train.batch_tokens=32", "train.workers={min: 1, max: 3}")
    said = "train.batch_tokens 32 is 2 sample(s) of 16 tokens a step, fewer than the 3 workers"
    with pytest.raises(JobError, match=re.escape(said)) as caught:
        make_plan(job, view((8, 0)))
    assert "at least 48" in str(caught.value.fix)
    assert make_plan(job, view((2, 0))).workers == 2


def test_a_vocabulary_that_does_not_fit_the_model(tiny_job: MakeJob) -> None:
    job = tiny_job("model.vocab_size=300", "data.tokenizer={path: tokenizer.json}")
    with pytest.raises(JobError, match=r"model\.vocab_size is 300, but the tokenizer has 301 tokens") as caught:
        require_vocabulary(job, 301)
    assert "at least 301" in str(caught.value.fix)
    require_vocabulary(job, 300)
    require_vocabulary(tiny_job(), 10**6)
