"""The optimizer's state on a disk: the same losses as in memory, and checkpoints that hold it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from harness import run_ranks
from nvme_fixtures import LOSSES
from safetensors.torch import load_file

from orchestrator.cluster.async_io import missing
from orchestrator.train.engine.deepspeed_engine import import_deepspeed
from orchestrator.train.engine.nvme import require_async_io

LACKS = missing()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),  # the first time on a machine it is compiled
    pytest.mark.skipif(LACKS is not None, reason=f"this machine lacks {LACKS}"),
]


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two ranks that begin, and one that goes on from them."""
    import_deepspeed()
    require_async_io()
    found = {"2": tmp_path_factory.mktemp("two"), "2-1": tmp_path_factory.mktemp("one")}
    run_ranks("nvme_fixtures.py", found["2"], 2)
    run_ranks("nvme_fixtures.py", found["2-1"], 1, found["2"])
    return found


def losses(folder: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = json.loads((folder / LOSSES).read_text())
    return found


def test_losses_are_those_of_memory(groups: dict[str, Path]) -> None:
    found = losses(groups["2"])
    assert found["nvme-before"] == pytest.approx(found["off-before"], rel=1e-6)
    assert found["nvme"] == pytest.approx(found["off"], rel=1e-6)


def test_it_was_on_the_disk(groups: dict[str, Path]) -> None:
    files = list((groups["2"] / "disk").rglob("*.swp"))
    assert {file.parent.name for file in files} == {"rank0", "rank1"}
    assert any("exp_avg" in file.name for file in files)


def test_a_checkpoint_holds_what_is_on_the_disk(groups: dict[str, Path]) -> None:
    for folder, count in (("2", 2), ("2-1", 1)):
        for rank in range(count):
            name = f"rank-{rank:05d}-of-{count:05d}.safetensors"
            disk, memory = (load_file(groups[folder] / place / name) for place in ("nvme", "off"))
            assert disk.keys() == memory.keys()
            assert all((disk[key] - memory[key]).abs().max() < 1e-6 for key in disk)


def test_one_worker_goes_on_from_two(groups: dict[str, Path]) -> None:
    assert losses(groups["2-1"])["nvme"] == pytest.approx(losses(groups["2"])["nvme"], rel=1e-6)
