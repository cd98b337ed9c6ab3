"""The plain engine: a plain loop's weights, however a step is cut up, and nothing lost between save and load."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from engine_fixtures import (
    CONFIG,
    LOSS,
    RATE,
    SAMPLES,
    STEPS,
    WEIGHTS,
    CausalLM,
    Normalised,
    SquaredError,
    TorchEngine,
    decoder,
    ids_of,
    keep,
    points,
    settings,
    step_of,
    whole,
)
from harness import run_ranks
from safetensors.torch import load_file
from torch import nn

from model.gpt import GPT
from orchestrator.job_train import Optimizer
from orchestrator.objectives.causal_lm import next_token_batch
from orchestrator.objectives.protocol import Tensors
from orchestrator.track.metrics import GRADIENT_NOISE, WEIGHT_NORM
from orchestrator.train.group import TorchGroup

EPS = 1e-5
"""AdamW's: with less, the first steps of numbers without a gradient follow the rounding of their sums."""


def engine_of(group: TorchGroup, model: nn.Module | None = None, **more: Any) -> TorchEngine:
    return TorchEngine(model or decoder(), CausalLM(), settings(**more), group=group)


def weights_of(engine: TorchEngine) -> Tensors:
    with tempfile.TemporaryDirectory() as folder:
        keep(engine, Path(folder))
        return whole(engine, Path(folder))


def same(first: Tensors, second: Tensors) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def close(first: Tensors, second: Tensors, tolerance: float) -> None:
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=tolerance, atol=tolerance, msg=name)


def plain_loop(steps: int, clip: float) -> tuple[list[float], list[float], GPT]:
    """What torch's own documentation would write."""
    model = decoder()
    decaying = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decaying, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), eps=EPS)
    losses, norms = [], []
    for step in range(1, steps + 1):
        ids = ids_of(step)
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), clip)))
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, norms, model


def test_twenty_steps_are_those_of_a_plain_loop(alone: TorchGroup) -> None:
    clip = 0.5
    losses, norms, model = plain_loop(20, clip)
    assert min(norms) > clip, "the clipping must matter"
    engine = engine_of(alone, gradient_clip=clip, optimizer=Optimizer(learning_rate=RATE, eps=EPS))
    stats = [step_of(engine, step) for step in range(1, 21)]
    targets = SAMPLES * CONFIG.context
    assert [stat.losses[LOSS] / targets for stat in stats] == pytest.approx(losses, abs=1e-6)
    assert [stat.grad_norm for stat in stats] == pytest.approx(norms, rel=1e-5)
    close(weights_of(engine), dict(model.named_parameters()), 1e-6)


@pytest.mark.parametrize("accumulation", [3, 4])
def test_micro_batches_add_up_to_the_step(alone: TorchGroup, accumulation: int) -> None:
    whole, cut = engine_of(alone), engine_of(alone)
    for step in range(1, 6):
        one, many = step_of(whole, step), step_of(cut, step, accumulation=accumulation)
        assert many.losses[LOSS] == pytest.approx(one.losses[LOSS], rel=1e-6)
        assert many.grad_norm == pytest.approx(one.grad_norm, rel=1e-5)
    close(weights_of(cut), weights_of(whole), 1e-5)


def test_bf16_follows_fp32(alone: TorchGroup) -> None:
    exact, rounded = engine_of(alone), engine_of(alone, precision="bf16")
    assert same(weights_of(exact), weights_of(rounded)), "the first weights are not rounded"
    for step in range(1, 21):
        one, other = step_of(exact, step, accumulation=2), step_of(rounded, step, accumulation=2)
        assert other.losses[LOSS] == pytest.approx(one.losses[LOSS], rel=1e-3), step
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=0.02), step


def test_updates_below_bf16s_resolution_are_not_lost(alone: TorchGroup) -> None:
    engine = engine_of(alone, precision="bf16", optimizer=Optimizer(name="sgd", momentum=0.0, weight_decay=0.0))
    before = weights_of(engine)["embed.weight"]
    for _ in range(5):
        step_of(engine, 1, rate=1e-6)
    after = weights_of(engine)["embed.weight"]
    assert (before.bfloat16() == after.bfloat16()).float().mean() > 0.98
    assert (before != after).float().mean() > 0.8


@pytest.mark.parametrize("name", ["adamw", "sgd", "adagrad", "lion", "muon"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_saved_run_goes_on_to_the_bit(alone: TorchGroup, tmp_path: Path, name: str, precision: str) -> None:
    more = {"optimizer": Optimizer(name=name), "precision": precision, "ema": 0.8}  # type: ignore[arg-type]
    straight = engine_of(alone, **more)
    for step in range(1, 6):
        step_of(straight, step, accumulation=2)
    keep(straight, tmp_path)
    resumed = engine_of(alone, GPT(CONFIG).initialise(2), **more)
    resumed.load(tmp_path)
    for step in range(6, 12):
        one, other = step_of(straight, step, accumulation=2), step_of(resumed, step, accumulation=2)
        assert one == other
    assert same(weights_of(straight), weights_of(resumed))
    assert straight.evaluate(next_token_batch(ids_of(3).numpy()), outputs=False) == resumed.evaluate(
        next_token_batch(ids_of(3).numpy()), outputs=False
    )


def test_loading_takes_an_engine_back(alone: TorchGroup, tmp_path: Path) -> None:
    engine = engine_of(alone, ema=0.5)
    step_of(engine, 1)
    keep(engine, tmp_path)
    expected = weights_of(engine), engine.outputs({"input_ids": ids_of(1)[:, :-1]})["logits"], step_of(engine, 2)
    engine.outputs({"input_ids": ids_of(1)[:, :-1]})
    engine.load(tmp_path)
    assert same(weights_of(engine), expected[0])
    assert torch.equal(engine.outputs({"input_ids": ids_of(1)[:, :-1]})["logits"], expected[1])
    assert step_of(engine, 2) == expected[2]


def test_a_state_that_does_not_fit_is_refused(alone: TorchGroup, tmp_path: Path) -> None:
    engine = engine_of(alone)
    keep(engine, tmp_path)
    with pytest.raises(OSError, match=r"average/.* are in no file"):
        engine_of(alone, ema=0.5).load(tmp_path)
    wider = GPT(CONFIG.__class__(**{**CONFIG.to_dict(), "vocab_size": 64})).initialise(0)
    with pytest.raises(OSError, match=r"does not fit this job: embed\.weight has 1952 numbers there, 2048 here"):
        engine_of(alone, wider).load(tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(OSError, match=r"rank-00000-of-00001\.safetensors"):
        engine.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        engine.load(tmp_path / "nowhere")


def test_the_average_is_what_is_scored_and_handed_on(alone: TorchGroup) -> None:
    decay = 0.7
    for precision in ("fp32", "bf16"):
        plain, averaged = engine_of(alone, precision=precision), engine_of(alone, precision=precision, ema=decay)
        expected = weights_of(plain)
        batch = next_token_batch(ids_of(50).numpy())
        for step in range(1, 8):
            # Scores between the steps must not change what is trained.
            averaged.evaluate(batch, outputs=True)
            assert step_of(plain, step) == step_of(averaged, step)
            expected = {name: decay * expected[name] + (1 - decay) * w for name, w in weights_of(plain).items()}
        close(weights_of(averaged), expected, 1e-6)
        shown = GPT(CONFIG)
        shown.load_state_dict(weights_of(averaged))
        shown = shown.to(torch.bfloat16 if precision == "bf16" else torch.float32)
        with torch.no_grad():  # as the engine does: kernels for training round elsewhere
            logits = shown(ids_of(50)[:, :-1]).float()
        assert torch.equal(averaged.evaluate(batch, outputs=True).outputs["logits"], logits)
        assert torch.equal(averaged.outputs({"input_ids": ids_of(50)[:, :-1]})["logits"], logits)
        assert not torch.equal(plain.outputs({"input_ids": ids_of(50)[:, :-1]})["logits"], logits)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_frozen_stays_to_the_bit(alone: TorchGroup, tmp_path: Path, precision: str) -> None:
    model = decoder()
    model.embed.requires_grad_(False)
    model.blocks[0].requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    engine = engine_of(alone, model, precision=precision)
    for step in range(1, 4):
        step_of(engine, step)
    after = weights_of(engine)
    for name, value in before.items():
        frozen = name.startswith(("embed.", "blocks.0."))
        assert torch.equal(after[name], value) is frozen, name
    keep(engine, tmp_path)
    trained = sum(value.numel() for name, value in before.items() if not name.startswith(("embed.", "blocks.0.")))
    numbers = sum(value.numel() for value in load_file(tmp_path / "rank-00000-of-00001.safetensors").values())
    assert numbers == 3 * trained, "a state holds nothing of what is frozen, and little else"


def test_a_model_without_anything_to_train_is_refused(alone: TorchGroup) -> None:
    with pytest.raises(ValueError, match="no parameter that is trained"):
        engine_of(alone, decoder().requires_grad_(False))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_buffers_are_saved_and_kept(alone: TorchGroup, tmp_path: Path, precision: str) -> None:
    def made() -> TorchEngine:
        return TorchEngine(Normalised(), SquaredError(), settings(precision=precision), group=alone)  # type: ignore[arg-type]

    engine, resumed = made(), made()
    for step in range(3):
        engine.step([points(step)], totals={"error": 6.0}, learning_rate=RATE)
    keep(engine, tmp_path)
    resumed.load(tmp_path)
    assert same(weights_of(engine), weights_of(resumed))
    found = weights_of(engine)
    assert found["norm.running_mean"].abs().sum() > 0
    assert int(found["norm.num_batches_tracked"]) == 3
    assert found.keys() == Normalised().state_dict().keys()
    assert torch.equal(engine.outputs(points(9).tensors)["logits"], resumed.outputs(points(9).tensors)["logits"])


def test_an_update_and_the_weights_are_not_shared(alone: TorchGroup) -> None:
    engine = engine_of(alone)
    handed_on = weights_of(engine)
    before = {name: value.clone() for name, value in handed_on.items()}
    step_of(engine, 1)
    assert same(handed_on, before)


class Hungry(CausalLM):
    """Asks for more memory than there is at a chosen forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.passes_left = 1_000

    def losses(self, model: nn.Module, tensors: Tensors) -> Tensors:
        self.passes_left -= 1
        if self.passes_left == 0:
            torch.empty(1 << 60)
        return super().losses(model, tensors)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_without_memory_can_be_made_again_in_smaller_pieces(alone: TorchGroup, precision: str) -> None:
    objective = Hungry()
    engine = TorchEngine(decoder(), objective, settings(precision=precision, ema=0.5), group=alone)
    spared = engine_of(alone, precision=precision, ema=0.5)
    for step in range(1, 6):
        if step == 3:
            objective.passes_left = 2
            before = weights_of(engine)
            with pytest.raises(RuntimeError, match="can't allocate memory"):
                step_of(engine, step, accumulation=2)
            assert same(weights_of(engine), before)
        assert step_of(engine, step, accumulation=4).losses == step_of(spared, step, accumulation=4).losses
    assert same(weights_of(engine), weights_of(spared))


def test_an_update_that_was_cut_off_is_not_gone_on_from(
    alone: TorchGroup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(alone, optimizer=Optimizer(name="muon"))
    keep(engine, tmp_path / "good")

    def no_memory(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "addmm", no_memory)
        with pytest.raises(torch.OutOfMemoryError):
            step_of(engine, 1)
    with pytest.raises(RuntimeError, match="cut off halfway"):
        step_of(engine, 1)
    with pytest.raises(RuntimeError, match="cut off halfway"):
        keep(engine, tmp_path / "bad")
    engine.load(tmp_path / "good")
    assert step_of(engine, 1) == step_of(engine_of(alone, optimizer=Optimizer(name="muon")), 1)


def test_every_tenth_step_tells_norm_and_noise(alone: TorchGroup) -> None:
    engine = engine_of(alone)
    extras = [step_of(engine, step, accumulation=4).extra for step in range(1, 21)]
    assert [step for step, extra in enumerate(extras, 1) if extra] == [10, 20]
    squares = [float(value.square().sum()) for value in weights_of(engine).values()]
    assert extras[-1][WEIGHT_NORM] == pytest.approx(sum(squares) ** 0.5, rel=1e-5)
    uncut = engine_of(alone)
    assert [set(step_of(uncut, step).extra) for step in (1,) * 10][-1] == {WEIGHT_NORM}


def test_micro_batches_that_agree_show_no_noise(alone: TorchGroup) -> None:
    engine, half = engine_of(alone), next_token_batch(ids_of(1)[: SAMPLES // 2].numpy())
    totals = {LOSS: float(SAMPLES * CONFIG.context)}
    stats = [engine.step([half, half], totals=totals, learning_rate=RATE) for _ in range(10)]
    assert stats[-1].extra[GRADIENT_NOISE] == pytest.approx(0.0, abs=1e-5)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks leave that share the samples of each step."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks("engine_fixtures.py", folder, 2, limit_s=120)
    return folder


def test_two_ranks_do_what_one_does(alone: TorchGroup, two_ranks: Path) -> None:
    one = engine_of(alone, ema=0.9)
    stats = [step_of(one, step, accumulation=4) for step in range(1, STEPS + 1)]
    told = [json.loads((two_ranks / f"decoder-{rank}.json").read_text()) for rank in range(2)]
    for rank in told:
        assert rank["losses"] == pytest.approx([stat.losses[LOSS] for stat in stats], rel=1e-6)
        assert rank["norms"] == pytest.approx([stat.grad_norm for stat in stats], rel=1e-5)
        assert rank["extra"][-1].keys() >= {WEIGHT_NORM}
    assert told[0]["extra"] == told[1]["extra"]
    close(load_file(two_ranks / WEIGHTS), weights_of(one), 1e-5)


def test_one_rank_goes_on_from_two(alone: TorchGroup, two_ranks: Path) -> None:
    engine = engine_of(alone, ema=0.9)
    engine.load(two_ranks / "state")
    assert same(weights_of(engine), load_file(two_ranks / WEIGHTS))


def test_all_ranks_evaluate_with_the_same_buffers(two_ranks: Path) -> None:
    first, second = (load_file(two_ranks / f"buffers-{rank}.safetensors")["logits"] for rank in range(2))
    assert torch.equal(first, second)
