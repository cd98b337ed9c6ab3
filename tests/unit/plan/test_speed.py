"""Time and price."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestrator.cluster.view import declared_view
from orchestrator.job import JobSpec
from orchestrator.plan import ClusterView, Node, Probe, make_plan
from orchestrator.plan.network import Case
from orchestrator.plan.speed import ASSUMED_MFU, gpu_by_memory, gpu_by_name

MakeJob = Callable[..., JobSpec]
MakeCase = Callable[..., Case]


def gpus(count: int, name: str | None = None, memory_bytes: int | None = None) -> ClusterView:
    """One node of GPUs."""
    return declared_view(nodes=1, cpus=None, gpus=count, gpu_name=name, gpu_memory_bytes=memory_bytes)


@pytest.mark.parametrize(
    ("name", "sheet", "half"),
    [
        ("NVIDIA H100 80GB HBM3", "H100", 989e12),
        ("NVIDIA H100 PCIe", "H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", "H100 NVL", 835e12),
        ("NVIDIA H200", "H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB", 312e12),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB", 312e12),
        ("A100-40G", "A100 40GB", 312e12),
        ("NVIDIA L40S", "L40S", 362e12),
        ("NVIDIA L4", "L4", 121e12),
        ("A10G", "A10", 125e12),
        ("Tesla T4", "T4", 65e12),
        ("AMD-Instinct-MI300X-OAM", "MI300X", 1307e12),
    ],
)
def test_a_gpu_is_known_by_the_names_that_drivers_and_ray_give_it(name: str, sheet: str, half: float) -> None:
    found = gpu_by_name(name)
    assert found is not None
    assert (found.name, found.half) == (sheet, half)


def test_a_gpu_that_is_not_in_the_table_is_not_guessed() -> None:
    assert gpu_by_name("GeForce GTX 1080") is None


@pytest.mark.parametrize(
    ("size", "sheet"), [(80 * 10**9, "A100 80GB"), (85_520_809_984, "A100 80GB"), (141 * 10**9, "H200"), (10**9, None)]
)
def test_memory_alone_stands_for_the_slowest_gpu_that_has_it(size: int, sheet: str | None) -> None:
    found = gpu_by_memory(size)
    assert (found.name if found else None) == sheet


def test_hours_are_flops_by_what_the_data_sheet_promises_and_training_reaches(tiny_job: MakeJob) -> None:
    job = tiny_job("train.workers={min: 4, gpus: 1}", "train.precision=bf16", "train.steps=1000")
    plan = make_plan(job, gpus(4, "NVIDIA H100 80GB HBM3"))
    assert plan.training_flops is not None
    assert plan.hours == pytest.approx(plan.training_flops / (4 * 989e12 * ASSUMED_MFU) / 3600)
    assert plan.speed == "assumed: 40% of 989 TFLOP/s a worker (H100, data sheet)"
    in_fp32 = make_plan(
        tiny_job("train.workers={min: 4, gpus: 1}", "train.steps=1000"), gpus(4, "NVIDIA H100 80GB HBM3")
    )
    assert in_fp32.hours == pytest.approx(plan.hours * 989 / 67)


def test_the_slowest_gpu_sets_the_pace(tiny_job: MakeJob) -> None:
    view = ClusterView(nodes=[Node(cpus=8, gpus=1, gpu_name=name) for name in ("NVIDIA H100", "NVIDIA L4")])
    assert (
        "121 TFLOP/s a worker (L4"
        in make_plan(tiny_job("train.workers={min: 2, gpus: 1}", "train.precision=bf16"), view).speed
    )


def test_a_speed_that_nobody_knows_has_no_hours_and_says_what_to_do(tiny_job: MakeJob) -> None:
    on_cpu = make_plan(tiny_job("cluster.cpu_hour_price=0.05"), ClusterView(nodes=[Node(cpus=4)]))
    assert (on_cpu.hours, on_cpu.cost) == (None, None)
    assert "set cluster.worker_flops" in on_cpu.speed
    unknown = make_plan(tiny_job("train.workers={min: 1, gpus: 1}"), gpus(1, "Abacus 9"))
    assert unknown.hours is None
    assert "no data sheet of Abacus 9" in unknown.speed
    assert make_plan(tiny_job("train.workers={min: 1, gpus: 1}"), gpus(1)).hours is None


def test_a_price_for_each_gpu_hour(tiny_job: MakeJob) -> None:
    workers = "train.workers={min: 4, gpus: 1}"
    plan = make_plan(tiny_job(workers, "cluster.gpu_hour_price=2.5"), gpus(4, "NVIDIA H100"))
    assert plan.hours is not None
    assert plan.cost == pytest.approx(plan.hours * 4 * 2.5)
    assert make_plan(tiny_job(workers), gpus(4, "NVIDIA H100")).cost is None


def test_the_jobs_own_speed_counts_on_cpus(tiny_job: MakeJob) -> None:
    job = tiny_job(
        "cluster={worker_flops: 100e9, cpu_hour_price: 0.05}", "train.workers={min: 2, cpus: 3}", "train.steps=100"
    )
    plan = make_plan(job, ClusterView(nodes=[Node(cpus=6)]))
    assert plan.training_flops is not None
    assert plan.hours == pytest.approx(plan.training_flops / (2 * 40e9) / 3600)
    assert plan.cost == pytest.approx(plan.hours * 6 * 0.05)


def test_a_probe_stands_in_for_the_assumption(tiny_job: MakeJob) -> None:
    view = ClusterView(nodes=[Node(cpus=4)])
    job = tiny_job("train.workers={min: 4}", "train.steps=100", "train.batch_tokens=1280", "cluster.cpu_hour_price=1")
    probe = Probe(steps=7, workers=2, stage=2, micro_batch=4, tokens_per_s=64.0)
    plan = make_plan(job, view, probe=probe)
    assert plan.hours == pytest.approx(128_000 / (2 * 64.0) / 3600)
    assert plan.cost == pytest.approx(plan.hours * 4)
    assert plan.speed == (
        "measured by a probe of 7 steps: 128 tokens/s, scaled from 2 to 4 workers without what they exchange"
    )
    assert f"time: {plan.speed}" in plan.why


@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        ({}, 3),
        ({"activation_checkpointing": True}, 4),
        ({"lora": {}}, 2),
        ({"lora": {}, "activation_checkpointing": True}, 3),
        ({"objective": "preference"}, 2 * 4),
    ],
)
def test_passes_that_are_made_again_or_left_out_cost_time(
    case: MakeCase, settings: dict[str, object], passes: int
) -> None:
    network = case("llama-7b", **settings).network
    assert network.executed_flops_per_token == pytest.approx(network.flops_per_token * passes / 3)


def test_flops_are_six_a_parameter_and_attention(case: MakeCase) -> None:
    network = case("gpt2-124m").network
    matrices = 12 * 12 * 768 * 768 + 50257 * 768
    assert network.flops_per_token == 6 * matrices + 12 * 12 * 768 * 1024


def test_a_masked_lm_pays_for_the_vocabulary_where_it_looks(case: MakeCase) -> None:
    network = case("bert-base", objective="masked-lm").network
    body = 6 * 12 * 12 * 768 * 768 + 12 * 12 * 768 * 512
    assert network.flops_per_token == pytest.approx(body + 0.15 * 6 * 768 * (768 + 30522))
