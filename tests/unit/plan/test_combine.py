"""Settings that do not go together are refused before anything starts; what brings nothing is said."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestrator.errors import JobError
from orchestrator.job import JobSpec
from orchestrator.plan import ClusterView, Node, make_plan
from orchestrator.plan.choose import possible_stages

MakeJob = Callable[..., JobSpec]

CPUS = ClusterView(nodes=[Node(cpus=8, memory_bytes=64 * 10**9)])
GPUS = ClusterView(nodes=[Node(cpus=8, gpus=1, memory_bytes=64 * 10**9, gpu_memory_bytes=80 * 10**9)])
TO_HOST = "{stage: auto, offload: {optimizer: cpu}}"
TO_DISK = "{stage: auto, offload: {optimizer: nvme, nvme_path: /nvme}}"


@pytest.mark.parametrize(
    ("sets", "named"),
    [
        (("train.lora={targets: [q, query]}",), ["train.lora.targets names query;", "down, gate, k, out, q, up, v"]),
        ((f"train.zero={TO_HOST}", "train.engine=torch"), ["offload {optimizer: cpu}", "train.engine torch"]),
        ((f"train.zero={TO_HOST}", "train.optimizer.name=muon"), ["offload {optimizer: cpu}", "optimizer muon"]),
        ((f"train.zero={TO_DISK}", "train.ema=0.99"), ["offload {optimizer: nvme}", "train.ema 0.99"]),
    ],
)
def test_what_nothing_would_do_is_refused_by_name(tiny_job: MakeJob, sets: tuple[str, ...], named: list[str]) -> None:
    with pytest.raises(JobError) as caught:
        make_plan(tiny_job(*sets), CPUS)
    assert all(name in caught.value.message for name in named), caught.value.message
    assert caught.value.fix


@pytest.mark.parametrize("zero", [TO_HOST, TO_DISK, "{stage: 3, offload: {optimizer: cpu, parameters: cpu}}"])
def test_offload_from_a_gpu_is_planned(tiny_job: MakeJob, zero: str) -> None:
    plan = make_plan(tiny_job(f"train.zero={zero}", "train.workers.gpus=1"), GPUS)
    assert plan.zero_stage >= 1
    assert plan.host_bytes_per_worker
    assert plan.warnings == []


@pytest.mark.parametrize(("zero", "place", "stage"), [(TO_HOST, "cpu", 1), (TO_DISK, "nvme", 3)])
def test_offload_from_the_host_is_allowed_and_warned_of(tiny_job: MakeJob, zero: str, place: str, stage: int) -> None:
    plan = make_plan(tiny_job(f"train.zero={zero}"), CPUS)
    assert plan.zero_stage == stage
    assert [w for w in plan.warnings if "brings nothing" in w and f"offload {{optimizer: {place}}}" in w]


def test_an_average_is_kept_at_any_stage(tiny_job: MakeJob) -> None:
    assert possible_stages(tiny_job("train.ema=0.99", "train.zero.stage=auto")) == [0, 1, 2, 3]
    assert make_plan(tiny_job("train.ema=0.99", "train.zero.stage=3", "train.workers={min: 4}"), CPUS).zero_stage == 3


@pytest.mark.parametrize("sets", [("train.optimizer.name=muon",), ("train.engine=torch",)])
def test_what_needs_whole_weights_is_planned_without_sharding(tiny_job: MakeJob, sets: tuple[str, ...]) -> None:
    job = tiny_job(*sets, "train.zero.stage=auto", "train.workers={min: 4}")
    assert possible_stages(job) == [0]
    assert make_plan(job, CPUS).zero_stage == 0
