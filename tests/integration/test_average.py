"""Several ranks keep the average of the weights in parts, and tell the same as one that has it whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from average_fixtures import AFTER, BEFORE, STAGES, engine_of, train
from harness import run_ranks
from safetensors.torch import load_file

from orchestrator.track.metrics import GRADIENT_NOISE, WEIGHT_NORM
from orchestrator.train.group import TorchGroup, join_group, leave_group


@pytest.fixture(scope="module")
def alone() -> Iterator[TorchGroup]:
    yield join_group()
    leave_group()


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two ranks that begin, and one that goes on from them."""
    found = {"2": tmp_path_factory.mktemp("two"), "2-1": tmp_path_factory.mktemp("one")}
    run_ranks("average_fixtures.py", found["2"], 2)
    run_ranks("average_fixtures.py", found["2-1"], 1, found["2"])
    return found


@pytest.fixture(scope="module")
def plain(alone: TorchGroup) -> list[dict[str, Any]]:
    """What the plain engine tells, of one rank."""
    return train(engine_of(None, alone), alone, range(1, BEFORE + AFTER + 1))


def told(folder: Path, stage: int, rank: int = 0) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / str(stage) / f"told-{rank}.json").read_text())
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_do_what_one_does(groups: dict[str, Path], plain: list[dict[str, Any]], stage: int) -> None:
    found = told(groups["2"], stage)
    assert found == told(groups["2"], stage, rank=1)
    for one, other in zip(plain, found, strict=True):
        for name in ("loss", "evaluated"):
            assert other[name] == pytest.approx(one[name], rel=1e-6)
        assert other["norm"] == pytest.approx(one["norm"], rel=1e-5)
    assert found[BEFORE - 1][WEIGHT_NORM] == pytest.approx(plain[BEFORE - 1][WEIGHT_NORM], rel=1e-6)
    assert GRADIENT_NOISE in found[BEFORE - 1]


@pytest.mark.parametrize("stage", STAGES[1:])
def test_noise_is_the_same_at_every_stage(groups: dict[str, Path], stage: int) -> None:
    whole, cut = (told(groups["2"], s)[BEFORE - 1][GRADIENT_NOISE] for s in (0, stage))
    assert cut == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize("stage", STAGES)
def test_one_rank_goes_on_from_two(groups: dict[str, Path], stage: int) -> None:
    unbroken = told(groups["2"], stage)[BEFORE:]
    for one, other in zip(unbroken, told(groups["2-1"], stage), strict=True):
        for name in ("loss", "evaluated"):
            assert other[name] == pytest.approx(one[name], rel=1e-6)


@pytest.mark.parametrize("stage", STAGES)
def test_each_rank_keeps_its_part(groups: dict[str, Path], stage: int) -> None:
    folder = groups["2"] / str(stage)
    files = sorted((folder / "state").iterdir())
    assert len(files) == (2 if stage else 1)
    averages = [{n: v for n, v in load_file(file).items() if n.startswith("average/")} for file in files]
    weights = load_file(folder / "weights.safetensors")
    sizes = [sum(v.numel() for v in found.values()) for found in averages]
    assert sum(sizes) == sum(v.numel() for v in weights.values())
    if stage:
        assert max(sizes) - min(sizes) < 0.2 * sum(sizes)
    whole = load_file(groups["2"] / "0" / "weights.safetensors")
    assert all(torch.allclose(value, whole[name], atol=1e-6) for name, value in weights.items())
