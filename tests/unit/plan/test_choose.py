"""Stage and micro-batch: as the job says, or the best that fits, with reasons that hold."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cluster.view import declared_view
from orchestrator.job import JobSpec
from orchestrator.plan import ClusterView, Node, Plan, Probe, make_plan
from orchestrator.plan.choose import possible_stages
from orchestrator.plan.memory import memory_of
from orchestrator.plan.network import Case, network_of

MakeJob = Callable[..., JobSpec]

SEVEN_BILLION = "model={layers: 32, width: 4096, heads: 32, context: 2048, vocab_size: 32000}"
SMALL = "model={layers: 12, width: 768, heads: 12, context: 1024, vocab_size: 50304}"
AUTO = ("train.zero.stage=auto", "train.precision=bf16", "train.workers={min: 8, cpus: 4, gpus: 1}")


def gpus(size_gb: int | None = 80, count: int = 8) -> ClusterView:
    """One node of GPUs."""
    return declared_view(nodes=1, cpus=None, gpus=count, gpu_memory_bytes=size_gb and size_gb * 10**9)


def peak_of(job: JobSpec, plan: Plan, stage: int, micro_batch: int) -> int:
    """By formula, of a choice that was not made."""
    network = network_of(job, None)
    assert network is not None
    share = -(-plan.samples_per_step // plan.workers)
    case = Case(
        network=network,
        workers=plan.workers,
        stage=stage,
        micro_batch=micro_batch,
        accumulation=-(-share // micro_batch),
    )
    return memory_of(case).peak


@pytest.mark.parametrize(
    ("model", "size_gb", "stage"), [(SMALL, 80, 0), (SEVEN_BILLION, 80, 2), (SEVEN_BILLION, 36, 3), (SMALL, 10, 0)]
)
def test_auto_takes_the_lowest_stage_that_fits(tiny_job: MakeJob, model: str, size_gb: int, stage: int) -> None:
    job = tiny_job(model, *AUTO, "train.batch_tokens=524288")
    plan = make_plan(job, gpus(size_gb))
    assert plan.zero_stage == stage
    assert plan.memory_per_worker is not None
    assert plan.usable_bytes_per_worker is not None
    assert plan.memory_per_worker.peak <= plan.usable_bytes_per_worker < size_gb * 10**9
    assert plan.warnings == []
    for lower in range(stage):
        assert peak_of(job, plan, lower, plan.micro_batch) > plan.usable_bytes_per_worker


@given(size_gb=st.integers(8, 200), samples=st.integers(8, 512), given_batch=st.none() | st.integers(1, 64))
def test_whatever_is_chosen_fits_or_is_warned_of(
    tiny_job: MakeJob, size_gb: int, samples: int, given_batch: int | None
) -> None:
    base = tiny_job(SEVEN_BILLION, *AUTO, "train.batch_tokens=16384")
    train = base.training.model_copy(update={"batch_tokens": samples * 2048, "micro_batch": given_batch})
    job = base.model_copy(update={"train": train})
    plan = make_plan(job, gpus(size_gb))
    assert plan.memory_per_worker is not None
    assert plan.usable_bytes_per_worker is not None
    fits = plan.memory_per_worker.peak <= plan.usable_bytes_per_worker
    assert fits == (not any("does not fit" in warning for warning in plan.warnings))
    share = -(-samples // 8)
    assert plan.micro_batch * plan.accumulation >= share > plan.micro_batch * (plan.accumulation - 1)
    if given_batch:
        assert plan.micro_batch == min(given_batch, share)


def test_a_micro_batch_leaves_no_pass_half_empty(tiny_job: MakeJob) -> None:
    """48 samples a worker: three passes of 16 rather than two of 32, of which one would be half empty."""
    job = tiny_job(SMALL, *AUTO, f"train.batch_tokens={8 * 48 * 1024}")
    plan = make_plan(job, gpus(40))
    assert plan.micro_batch * plan.accumulation == 48


def test_the_next_micro_batch_would_not_have_fitted(tiny_job: MakeJob) -> None:
    job = tiny_job(SEVEN_BILLION, *AUTO, "train.batch_tokens=524288")
    plan = make_plan(job, gpus())
    said = next(reason for reason in plan.why if reason.startswith("micro-batch"))
    assert plan.micro_batch == 4
    assert said.startswith("micro-batch 4: 6 would take 8")
    assert plan.usable_bytes_per_worker is not None
    assert peak_of(job, plan, plan.zero_stage, 6) > plan.usable_bytes_per_worker


def test_one_worker_has_nothing_to_shard(tiny_job: MakeJob) -> None:
    job = tiny_job(SMALL, "train.zero.stage=auto", "train.workers={min: 1, gpus: 1}", "train.batch_tokens=8192")
    plan = make_plan(job, gpus(count=1))
    assert plan.zero_stage == 0
    assert any("one worker has nothing to shard" in reason for reason in plan.why)


def test_what_the_job_says_is_kept_though_it_does_not_fit_and_what_would_is_said(tiny_job: MakeJob) -> None:
    job = tiny_job(SEVEN_BILLION, *AUTO, "train.zero.stage=0", "train.micro_batch=4", "train.batch_tokens=524288")
    plan = make_plan(job, gpus())
    assert (plan.zero_stage, plan.micro_batch) == (0, 4)
    (warning,) = plan.warnings
    assert "it does not fit: stage 0 with a micro-batch of 4 takes 17" in warning
    assert "72.1 GB can be filled" in warning
    assert "train.zero.stage: 2 would take" in warning
    assert warning in plan.why


def test_nothing_helps_a_model_that_is_far_too_large(tiny_job: MakeJob) -> None:
    job = tiny_job(SEVEN_BILLION, *AUTO, "train.batch_tokens=524288", "model.layers=400")
    (warning,) = make_plan(job, gpus(8)).warnings
    assert "no change of these helps: use workers with" in warning


@pytest.mark.parametrize(
    ("size_gb", "workers", "said"),
    [
        (24, 8, "train.activation_checkpointing: true would take"),
        (16, 8, "train.activation_checkpointing: true and train.zero.offload.optimizer: cpu would take"),
        (14, 2, "train.zero.offload.optimizer: cpu and 4 workers would take"),
    ],
)
def test_what_would_fit_is_named_and_does_fit(tiny_job: MakeJob, size_gb: int, workers: int, said: str) -> None:
    job = tiny_job(SEVEN_BILLION, *AUTO, "train.batch_tokens=524288", f"train.workers={{min: {workers}, gpus: 1}}")
    (warning,) = make_plan(job, gpus(size_gb)).warnings
    assert said in warning


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        ((), [0, 1, 2, 3]),
        (("train.engine=torch",), [0]),
        (("train.optimizer.name=muon",), [0]),
        (("train.zero.offload.optimizer=cpu",), [1, 2, 3]),
        (("train.zero.offload={optimizer: nvme, nvme_path: /nvme}",), [3]),
        (("train.zero.offload.parameters=cpu",), [3]),
        (("train.zero.stage=1",), [1]),
    ],
)
def test_auto_has_the_stages_that_go_with_the_rest(
    tiny_job: MakeJob, sets: tuple[str, ...], expected: list[int]
) -> None:
    assert possible_stages(tiny_job(*AUTO, *sets)) == expected


def test_host_memory_for_offload_is_looked_at(tiny_job: MakeJob) -> None:
    job = tiny_job(
        SEVEN_BILLION, *AUTO, "train.zero={stage: 3, offload: {optimizer: cpu}}", "train.batch_tokens=524288"
    )
    assert any("how much there is, is not known" in warning for warning in make_plan(job, gpus()).warnings)
    small = declared_view(nodes=1, cpus=64, gpus=8, gpu_memory_bytes=80 * 10**9, memory_bytes=64 * 10**9)
    assert any("are there" in warning for warning in make_plan(job, small).warnings)
    large = declared_view(nodes=1, cpus=64, gpus=8, gpu_memory_bytes=80 * 10**9, memory_bytes=2 * 10**12)
    plan = make_plan(job, large)
    assert plan.warnings == []
    assert plan.parameters is not None
    assert plan.host_bytes_per_worker == pytest.approx(plan.parameters / 8 * (18 + 12), rel=1e-6)


def test_unknown_memory_is_said_and_nothing_is_promised(tiny_job: MakeJob) -> None:
    plan = make_plan(tiny_job(SMALL, *AUTO, "train.batch_tokens=524288"), gpus(None))
    assert plan.zero_stage == 2
    assert plan.micro_batch * 1024 == 2048
    assert plan.usable_bytes_per_worker is None
    assert plan.memory_per_worker is not None
    assert any(
        "the memory of the workers is not known: nothing says whether the job fits; give --gpu-memory" in warning
        for warning in plan.warnings
    )
    [warning] = make_plan(tiny_job(), gpus(None)).warnings
    assert "give --memory," in warning


def test_a_gpu_that_the_base_fills_has_no_room_left(tiny_job: MakeJob) -> None:
    plan = make_plan(tiny_job(SMALL, *AUTO, "train.batch_tokens=524288"), gpus(1))
    assert plan.usable_bytes_per_worker == 0
    assert any("0 B can be filled" in warning for warning in plan.warnings)


def test_an_unknown_size_is_said(tiny_job: MakeJob) -> None:
    job = tiny_job("data.tokenizer={path: tokenizer.json}", "train.zero.stage=auto", "train.workers={min: 1, max: 2}")
    plan = make_plan(job, ClusterView(nodes=[Node(cpus=2, memory_bytes=8 * 10**9)]))
    assert (plan.zero_stage, plan.memory_per_worker, plan.hours) == (2, None, None)
    assert any("the size of the model is not known" in warning for warning in plan.warnings)
    known = make_plan(tiny_job(), ClusterView(nodes=[Node(cpus=2)])).summary()["memory_per_worker"]
    assert plan.summary()["memory_per_worker"] == dict.fromkeys(known)


def test_cpu_workers_share_their_node(tiny_job: MakeJob) -> None:
    view = ClusterView(nodes=[Node(cpus=2, memory_bytes=10 * 10**9), Node(cpus=8, memory_bytes=20 * 10**9)])
    plan = make_plan(tiny_job("train.workers={min: 1, max: 10}", "train.batch_tokens=160"), view)
    assert plan.usable_bytes_per_worker == 20 * 10**9 * 0.92 / 8 - 600_000_000


def test_on_a_cpu_about_2048_tokens_are_a_pass_and_fewer_where_memory_is_short(tiny_job: MakeJob) -> None:
    job = tiny_job("train.batch_tokens=8192")
    roomy = ClusterView(nodes=[Node(cpus=1, memory_bytes=4 * 10**9)])
    assert make_plan(job, roomy).micro_batch == 128
    tight = ClusterView(nodes=[Node(cpus=1, memory_bytes=750_000_000)])
    plan = make_plan(job, tight)
    assert plan.micro_batch in (16, 32, 64)
    assert plan.warnings == []


def test_a_probes_peak_moves_the_formulas(tiny_job: MakeJob) -> None:
    job = tiny_job(SMALL, *AUTO, "train.zero.stage=2", "train.batch_tokens=524288", "train.micro_batch=16")
    plain = make_plan(job, gpus())
    assert plain.memory_per_worker is not None
    measured = plain.memory_per_worker.peak + 10**9
    probe = Probe(steps=5, workers=8, stage=2, micro_batch=16, tokens_per_s=1e6, peak_bytes=measured)
    plan = make_plan(job, gpus(), probe=probe)
    assert plan.memory_per_worker is not None
    assert plan.memory_per_worker.peak == measured


def test_a_job_of_a_custom_module_has_a_plan_without_sizes(tiny_job: MakeJob) -> None:
    job = tiny_job(
        "model={kind: custom, class: 'package.module:Class'}",
        "data={kind: columns, sources: [{path: x.jsonl, format: jsonl}], columns: {a: int64}}",
        "train.batch_tokens=512",
    )
    plan = make_plan(job, ClusterView(nodes=[Node(cpus=2, memory_bytes=8 * 10**9)]))
    assert (plan.parameters, plan.memory_per_worker) == (None, None)


def test_the_summary_has_the_keys_that_scripts_read(tiny_job: MakeJob) -> None:
    summary = make_plan(tiny_job(SMALL, *AUTO, "train.batch_tokens=524288"), gpus()).summary()
    assert list(summary) == [
        *("parameters", "flops_per_token", "zero_stage", "micro_batch", "accumulation", "memory_per_worker"),
        *("steps", "tokens", "hours", "cost", "why"),
    ]
    assert list(summary["memory_per_worker"]) == [
        *("weights", "gradients", "optimizer", "activations", "logits", "peak")
    ]
