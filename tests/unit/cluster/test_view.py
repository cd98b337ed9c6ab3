"""What there is to run on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.cluster.view import declared_view, local_view, ray_node
from orchestrator.plan import Node


def test_this_machine_is_one_node_with_the_cores_we_may_use() -> None:
    view = local_view()
    assert view.source == "local"
    assert [node.cpus for node in view.nodes] == [len(os.sched_getaffinity(0))]


def test_a_process_bound_to_one_core_has_one() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert local_view().nodes[0].cpus == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize("visible", ["", "-1"])
def test_devices_that_are_hidden_are_not_there(visible: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert local_view().nodes[0].gpus == 0


def test_no_more_devices_are_visible_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Path("/proc/driver/nvidia/gpus")
    present = len(list(driver.iterdir())) if driver.is_dir() else 0
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(64))))
    assert local_view().nodes[0].gpus == present
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert local_view().nodes[0].gpus == present


def test_a_cluster_can_be_declared() -> None:
    view = declared_view(nodes=3, cpus=16, gpus=8)
    assert (view.source, view.describe()) == ("declared", "48 CPUs and 24 GPUs on 3 node(s)")


def test_this_machine_tells_its_memory() -> None:
    found = local_view().nodes[0].memory_bytes
    assert found is not None
    assert 0 < found <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_a_declared_node_has_cpus_for_its_gpus() -> None:
    (node,) = declared_view(nodes=1, cpus=None, gpus=8, gpu_memory_bytes=80 * 10**9).nodes
    assert node == Node(cpus=96, gpus=8, gpu_memory_bytes=80 * 10**9)
    assert declared_view(nodes=1, cpus=None, gpus=0).nodes[0].cpus == 1


def test_a_gpus_name_says_its_memory() -> None:
    (node,) = declared_view(nodes=1, cpus=8, gpus=1, gpu_name="H200").nodes
    assert node.gpu_memory_bytes == 141 * 10**9
    (node,) = declared_view(nodes=1, cpus=8, gpus=1, gpu_name="H200", gpu_memory_bytes=100).nodes
    assert node.gpu_memory_bytes == 100


def test_what_ray_says_of_a_node() -> None:
    resources = {"CPU": 64.0, "GPU": 8.0, "memory": 1.5e12, "node:10.0.0.1": 1.0, "accelerator_type:H100": 1.0}
    assert ray_node(resources) == Node(
        cpus=64, gpus=8, memory_bytes=1_500_000_000_000, gpu_memory_bytes=80 * 10**9, gpu_name="H100"
    )
    assert ray_node({"CPU": 4.0}) == Node(cpus=4)
