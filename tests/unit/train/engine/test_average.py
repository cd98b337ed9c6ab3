"""The average of the weights under ZeRO, of one rank; tests/integration/test_average.py has several."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from average_fixtures import BEFORE, DECAY, PROBE, engine_of, train
from engine_fixtures import CONFIG, keep, step_of, whole
from torch import Tensor

from model.gpt import GPT
from orchestrator.track.metrics import GRADIENT_NOISE, WEIGHT_NORM
from orchestrator.train.engine.protocol import TrainEngine
from orchestrator.train.group import TorchGroup

STAGES = (0, 1, 2, 3)


def pieces(engine: TrainEngine, kind: str) -> dict[str, Tensor]:
    """Copies of a kind of pieces, by parameter."""
    state = engine.state()
    assert state is not None
    found = {name.partition("/")[::2]: piece.values_N.clone() for name, piece in state.pieces.items()}
    return {name: values for (of, name), values in found.items() if of == kind}


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (1, "fp32"), (2, "bf16"), (3, "bf16"), (3, "fp32")])
def test_the_average_is_what_is_scored_and_handed_on(
    alone: TorchGroup, tmp_path: Path, stage: int, precision: str
) -> None:
    engine = engine_of(stage, alone, precision=precision)
    expected = pieces(engine, "weight")
    for step in range(1, 6):
        engine.outputs(PROBE)
        step_of(engine, step, accumulation=4)
        weights = pieces(engine, "weight")
        expected = {name: DECAY * value + (1 - DECAY) * weights[name] for name, value in expected.items()}
    assert engine.beside() is None
    keep(engine, tmp_path)
    averaged = whole(engine, tmp_path)
    for name, value in expected.items():
        assert torch.allclose(averaged[name].view(-1), value, atol=1e-6)
        assert not torch.equal(value, weights[name])
    shown = GPT(CONFIG)
    shown.load_state_dict(averaged)
    with torch.no_grad():
        logits = shown.to(torch.bfloat16 if precision == "bf16" else torch.float32)(PROBE["input_ids"]).float()
    assert torch.allclose(engine.outputs(PROBE)["logits"], logits, atol=0.05 if precision == "bf16" else 1e-6)
    assert engine.checksum() == engine.checksum()


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_does_what_the_plain_engine_does(alone: TorchGroup, tmp_path: Path, stage: int) -> None:
    """Averages and statistics; and either goes on from the other's state."""
    plain, cut = engine_of(None, alone), engine_of(stage, alone)
    told, found = (train(engine, alone, range(1, BEFORE + 1)) for engine in (plain, cut))
    for one, other in zip(told, found, strict=True):
        assert other == pytest.approx(one, rel=1e-5)
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-6)
    assert found[-1].keys() >= {GRADIENT_NOISE, WEIGHT_NORM}
    keep(plain, tmp_path / "plain")
    keep(cut, tmp_path / "cut")
    later = range(BEFORE + 1, 2 * BEFORE + 1)
    expected = train(plain, alone, later)
    cut.load(tmp_path / "plain")
    plain.load(tmp_path / "cut")
    for crossed in (train(plain, alone, later), train(cut, alone, later)):
        assert all(one == pytest.approx(other, rel=1e-5) for one, other in zip(crossed, expected, strict=True))


@pytest.mark.parametrize("stage", STAGES)
def test_an_update_that_is_left_out_moves_no_average(alone: TorchGroup, stage: int) -> None:
    engine = engine_of(stage, alone)
    step_of(engine, 1, accumulation=4)
    before = pieces(engine, "average"), pieces(engine, "weight")
    step_of(engine, 2, accumulation=4, admit=lambda _: False)
    for old, kind in zip(before, ("average", "weight"), strict=True):
        new = pieces(engine, kind)
        assert all(torch.equal(new[name], value) for name, value in old.items())
    assert any(not torch.equal(value, before[1][name]) for name, value in before[0].items())


def test_a_state_without_an_average_is_refused(alone: TorchGroup, tmp_path: Path) -> None:
    keep(engine_of(1, alone, ema=None), tmp_path)
    with pytest.raises(OSError, match=r"average/.* are in no file"):
        engine_of(1, alone).load(tmp_path)
