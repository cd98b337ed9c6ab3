"""The files for Ray's cluster launcher: valid by Ray's own code, closed, and of the size that they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.cluster.bounds import Bounds, bounds_from, read_config
from orchestrator.job_train import Workers
from orchestrator.plan.capacity import workers_that_fit

FILES = ("cluster.yaml", "cluster-local.yaml")


@pytest.fixture(params=FILES)
def config(request: pytest.FixtureRequest, root: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((root / request.param).read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", FILES)
def test_ray_takes_it(name: str, root: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((root / name).read_text(encoding="utf-8")))
    validate_config(config)
    assert config["head_node_type"] in config["available_node_types"]


def test_a_file_with_a_mistake_is_not_taken(config: dict[str, Any]) -> None:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(ValidationError, match="max_wrokers"):
        validate_config(prepare_config({**config, "max_wrokers": 3}))


def test_every_ray_is_started_in_token_mode_with_its_dashboard_on_loopback(config: dict[str, Any]) -> None:
    starts = [
        command
        for key in ("head_start_ray_commands", "worker_start_ray_commands")
        for command in config[key]
        if "ray start" in command
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "--dashboard-host" not in starts[1]


def test_the_token_travels_as_a_file_that_its_owner_alone_reads(config: dict[str, Any]) -> None:
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"]
    assert "RAY_AUTH_TOKEN" not in str(config)


def test_machines_in_the_cloud_have_the_sizes_that_plans_count_with(root: Path) -> None:
    bounds = bounds_from(read_config(root / "cluster.yaml"))
    assert bounds is not None
    assert (bounds.known, bounds.most) == (True, 8)
    assert {one.name: (one.node.cpus, one.node.gpus, one.node.gpu_name, one.most) for one in bounds.types} == {
        "gpu_spot": (192, 8, "H100", 4),
        "gpu_on_demand": (192, 8, "H100", 2),
        "data_worker": (32, 0, None, 4),
    }
    workers = Workers(min=1, max=1000, gpus=1)
    assert workers_that_fit(workers, bounds.view(workers, [])) == 48
    config = yaml.safe_load((root / "cluster.yaml").read_text(encoding="utf-8"))
    spot = config["available_node_types"]["gpu_spot"]["node_config"]
    assert spot["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_of_ones_own_machines_nobody_but_ray_knows_the_size(root: Path) -> None:
    assert bounds_from(read_config(root / "cluster-local.yaml")) == Bounds(known=False)
