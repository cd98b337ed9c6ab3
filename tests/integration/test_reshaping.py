"""A state that some ranks wrote is taken up by any other number of ranks, at any ZeRO stage."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_fixtures import decoder, settings, step_of
from harness import run_ranks
from reshaping_fixtures import AFTER, BEFORE, CASES, LOSSES, TARGETS, Case
from safetensors.torch import load_file

from orchestrator.objectives.causal_lm import LOSS, CausalLM
from orchestrator.train.engine.torch_engine import TorchEngine
from orchestrator.train.group import TorchGroup, join_group, leave_group

PRECISE = {"fp32": 1e-6, "bf16": 5e-4}


def ranks(folder: Path, count: int, *, begun: Path | None = None) -> Path:
    """What a group of so many ranks leaves in a folder."""
    folder.mkdir()
    run_ranks("reshaping_fixtures.py", folder, count, *([begun] if begun else []))
    return folder


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two ranks that begin; one that goes on from them, three from that one, and two again from the three."""
    parent = tmp_path_factory.mktemp("groups")
    two = ranks(parent / "2", 2)
    one = ranks(parent / "2-1", 1, begun=two)
    three = ranks(parent / "2-1-3", 3, begun=one)
    again = ranks(parent / "2-1-3-2", 2, begun=three)
    return {"2": two, "2-1": one, "2-1-3": three, "2-1-3-2": again}


def losses(folder: Path, case: Case) -> list[float]:
    found: list[float] = json.loads((folder / LOSSES).read_text())[case.name]
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_curve_goes_on_as_if_nothing_had_been(groups: dict[str, Path], case: Case) -> None:
    unbroken = losses(groups["2"], case)
    for path in ("2-1", "2-1-3"):
        assert losses(groups[path], case) == pytest.approx(unbroken, rel=PRECISE[case.precision])
    assert losses(groups["2-1-3-2"], case) == unbroken, "the same number of ranks is the same to the bit"


@pytest.mark.parametrize("case", CASES[:4], ids=lambda case: case.name)
def test_a_stage_goes_on_from_another_one(groups: dict[str, Path], case: Case) -> None:
    for path in ("2-1", "2-1-3", "2-1-3-2"):
        crossed: list[float] = json.loads((groups[path] / LOSSES).read_text())[f"crossed-{case.name}"]
        assert crossed == pytest.approx(losses(groups["2"], case), rel=PRECISE["fp32"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_number_is_written_by_one_rank(groups: dict[str, Path], case: Case) -> None:
    for path, count in (("2", 2), ("2-1", 1), ("2-1-3", 3)):
        files = sorted((groups[path] / case.name).iterdir())
        expected = count if case.stage else 1
        assert [file.name for file in files] == [
            f"rank-{rank:05d}-of-{expected:05d}.safetensors" for rank in range(expected)
        ]
        sizes = [sum(v.numel() for n, v in load_file(file).items() if n.startswith("weight/")) for file in files]
        whole = sum(v.numel() for n, v in load_file(_of_stage_0(groups["2"])).items() if n.startswith("weight/"))
        assert sum(sizes) == whole
        if case.stage:
            assert max(sizes) - min(sizes) < 0.2 * whole


def _of_stage_0(folder: Path) -> Path:
    return next((folder / CASES[0].name).iterdir())


@pytest.mark.parametrize("case", CASES[:4], ids=lambda case: case.name)
def test_the_plain_engine_goes_on_from_any_stage(groups: dict[str, Path], case: Case, alone: TorchGroup) -> None:
    engine = TorchEngine(decoder(), CausalLM(), settings(), group=alone)
    engine.load(groups["2"] / case.name)
    steps = range(BEFORE + 1, BEFORE + AFTER + 1)
    found = [step_of(engine, step).losses[LOSS] / TARGETS for step in steps]
    assert found == pytest.approx(losses(groups["2"], case), rel=PRECISE["fp32"])


@pytest.fixture(scope="module")
def alone() -> Iterator[TorchGroup]:
    yield join_group()
    leave_group()
