"""How far an autoscaler goes, and what is refused for sure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from orchestrator.cluster.bounds import Bounds, NodeType, bounds_from, read_config, require_capacity_ever
from orchestrator.cluster.view import Machine
from orchestrator.errors import CapacityError
from orchestrator.job import JobSpec, Workers
from orchestrator.plan import Node
from orchestrator.plan.capacity import workers_that_fit

MakeJob = Callable[..., JobSpec]
HEAD = Machine("head", Node(cpus=2), Node(cpus=2))
GPUS = NodeType("gpu", Node(cpus=96, gpus=8), 2)
CPUS = NodeType("cpu", Node(cpus=32), 4)


@pytest.mark.parametrize(
    ("workers", "most", "fit"),
    [
        (Workers(min=1, max=99, gpus=1), 6, 16),
        (Workers(min=1, max=99, gpus=1), 1, 8),  # of all types together one machine
        (Workers(min=1, max=999, cpus=2), 6, 1 + 2 * 48 + 4 * 16),
        (Workers(min=1, max=9, gpus=16), 6, 0),  # no machine is that large
    ],
)
def test_the_largest_cluster_for_some_workers(workers: Workers, most: int, fit: int) -> None:
    view = Bounds([GPUS, CPUS], most).view(workers, [HEAD])
    assert workers_that_fit(workers, view) == fit


def test_machines_that_the_autoscaler_has_started_are_not_counted_twice() -> None:
    started = Machine("g", Node(cpus=96, gpus=8, memory_bytes=7), Node(cpus=96, gpus=8))
    workers = Workers(min=1, max=99, gpus=1)
    assert workers_that_fit(workers, Bounds([GPUS], 2).view(workers, [HEAD, started, started])) == 16


def test_a_job_that_never_fits_is_refused_with_the_numbers(tiny_job: MakeJob) -> None:
    job = tiny_job("train.workers={min: 17, max: 32, gpus: 1}", "train.batch_tokens=512")
    with pytest.raises(
        CapacityError, match=r"at least 17 worker\(s\) of 1 CPU\(s\) and 1 GPU\(s\); 16 fit on .*16 GPUs"
    ):
        require_capacity_ever(job, [HEAD], lambda: Bounds([GPUS, CPUS], 6))
    with pytest.raises(CapacityError, match="0 fit on 2 CPUs and 0 GPUs on 1 node"):
        require_capacity_ever(job, [HEAD], lambda: None)


@pytest.mark.parametrize("bounds", [Bounds([GPUS], 3), Bounds(known=False)])
def test_one_that_fits_later_is_not(tiny_job: MakeJob, bounds: Bounds) -> None:
    require_capacity_ever(tiny_job("train.workers={min: 16, max: 16, gpus: 1}"), [HEAD], lambda: bounds)


def test_what_fits_now_asks_for_no_bounds(tiny_job: MakeJob) -> None:
    def fail() -> Bounds:
        raise AssertionError

    require_capacity_ever(tiny_job("train.workers={min: 2}"), [HEAD], fail)


def test_a_file_for_the_launcher_is_read_as_the_autoscaler_reads_it(tmp_path: Path) -> None:
    types = {
        "head": {"node_config": {}, "resources": {"CPU": 2}, "max_workers": 0},
        "gpu": {"node_config": {}, "resources": {"CPU": 96, "GPU": 8, "accelerator_type:H100": 1}, "max_workers": 2},
        "none": {"node_config": {}, "resources": {"CPU": 1}, "max_workers": 0},
    }
    provider = {"type": "aws", "region": "us-west-2"}
    config = {
        "cluster_name": "x", "max_workers": 3, "provider": provider, "available_node_types": types,
        "head_node_type": "head",
    }  # fmt: skip
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(config))
    found = bounds_from(read_config(path))
    assert found is not None
    assert (found.most, [(one.name, one.most, one.node.gpus, one.node.gpu_name) for one in found.types]) == (
        3,
        [("gpu", 2, 8, "H100")],
    )


def test_what_nobody_knows(tmp_path: Path) -> None:
    (tmp_path / "broken").write_text("provider: 3")
    assert read_config(tmp_path / "broken") == {"known": False}
    assert read_config(tmp_path / "none") == {"known": False}
    assert bounds_from(None) is None
    sizeless = {"known": True, "most": 2, "types": [{"name": "a", "resources": {}, "most": 2}]}
    assert bounds_from(sizeless) == Bounds(known=False)
