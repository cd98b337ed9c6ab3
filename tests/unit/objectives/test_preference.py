"""Direct preference optimisation is the paper's, however its pairs are padded, cut, dealt and referred to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model.config import ModelConfig
from model.gpt import GPT
from orchestrator.data.labelled.shards import write_rows
from orchestrator.data.load.mixture import Part
from orchestrator.data.load.order import deal
from orchestrator.job_train import Lora
from orchestrator.objectives import preference
from orchestrator.objectives.pairs import PAIRS, PreferenceRows
from orchestrator.objectives.preference import DirectPreference, FrozenCopy, answer_log_probs
from orchestrator.objectives.rows import RowExamples, RowFeed
from orchestrator.train.weights.lora import adapters_off, add_adapters

CONTEXT = 24
LLAMA = ModelConfig(vocab_size=97, layers=2, width=32, heads=4, kv_heads=2, hidden=64, context=CONTEXT)
GPT2 = ModelConfig(family="gpt2", vocab_size=97, layers=2, width=32, heads=4, kv_heads=4, hidden=64, context=CONTEXT)
BETA = 0.3
Pair = tuple[list[int], list[int], list[int]]


def make_pairs(seed: int, count: int = 6) -> list[Pair]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 9, (count, 3)).tolist()
    return [tuple(rng.integers(0, 97, n).tolist() for n in row) for row in sizes]  # type: ignore[misc]


def part_of(path: Path, pairs: list[Pair], name: str = "all", weight: float | None = None) -> Part:
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    columns: dict[str, Any] = {
        name: [np.array(pair[at], dtype=np.uint16) for pair in pairs] for at, name in enumerate(names)
    }
    write_rows(path, columns, {"kind": "preference"})
    return Part(name, weight, [path])


def changed(model: GPT) -> GPT:
    """The model some steps later."""
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.1)
    return model


def log_prob(model: GPT, prompt: list[int], answer: list[int]) -> Tensor:
    logits = model(torch.tensor([prompt + answer]))[0]
    steps = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
    return torch.stack([logits[at].log_softmax(-1)[(prompt + answer)[at + 1]] for at in steps]).sum()


def papers_loss(policy: GPT, reference: GPT, pairs: list[Pair]) -> Tensor:
    """Equation 7 pair by pair, without padding."""
    losses = []
    for prompt, chosen, rejected in pairs:
        with torch.no_grad():
            before = [log_prob(reference, prompt, answer) for answer in (chosen, rejected)]
        now = [log_prob(policy, prompt, answer) for answer in (chosen, rejected)]
        losses.append(-torch.sigmoid(BETA * (now[0] - before[0]) - BETA * (now[1] - before[1])).log())
    return torch.stack(losses).sum()


@pytest.mark.parametrize("chunk_rows", [3, 1000])
@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=lambda config: config.family)
def test_losses_and_gradients_are_the_papers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: ModelConfig, chunk_rows: int
) -> None:
    monkeypatch.setattr(preference, "default_chunk_rows", lambda *_: chunk_rows)
    pairs = make_pairs(0)
    initial = GPT(config).initialise(0)
    objective = DirectPreference(beta=BETA, reference=FrozenCopy(initial))
    policy, other = changed(GPT(config).initialise(0)), changed(GPT(config).initialise(0))
    rows = PreferenceRows([part_of(tmp_path / "0.arrow", pairs)], context=CONTEXT, split="train")
    batch = rows.collate(np.arange(len(pairs)))

    found = objective.losses(policy, batch.tensors)[PAIRS]
    found.backward()
    wanted = papers_loss(other, initial, pairs)
    wanted.backward()

    assert abs(float(found.detach()) / len(pairs) - np.log(2)) > 0.001  # it has moved from the reference
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    for (name, mine), theirs in zip(policy.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_it_begins_at_the_logarithm_of_two(tmp_path: Path) -> None:
    model = GPT(LLAMA).initialise(0)
    objective = DirectPreference(beta=BETA, reference=FrozenCopy(model))
    rows = PreferenceRows([part_of(tmp_path / "0.arrow", make_pairs(1))], context=CONTEXT, split="train")
    loss = objective.losses(model, rows.collate(np.arange(6)).tensors)[PAIRS]
    assert float(loss.detach()) == pytest.approx(6 * np.log(2), rel=1e-6)


def test_the_copy_stays_as_it_was_and_follows_the_models_precision() -> None:
    model = GPT(LLAMA).initialise(0)
    reference = FrozenCopy(model)
    changed(model).bfloat16()
    with reference(model) as frozen:
        assert {p.dtype for p in frozen.parameters()} == {torch.bfloat16}
        assert not any(p.requires_grad for p in frozen.parameters())
        torch.testing.assert_close(frozen.embed.weight, GPT(LLAMA).initialise(0).embed.weight.bfloat16())  # type: ignore[union-attr]
    assert not any(isinstance(value, torch.nn.Module) for value in vars(model).values())  # held elsewhere


def test_with_adapters_the_reference_is_the_model_without_them(tmp_path: Path) -> None:
    pairs = make_pairs(2)
    initial = GPT(LLAMA).initialise(0)
    model = add_adapters(GPT(LLAMA).initialise(0), Lora(rank=2, dropout=0.5), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    tensors = (
        PreferenceRows([part_of(tmp_path / "0.arrow", pairs)], context=CONTEXT, split="t").collate(np.arange(6)).tensors
    )
    model.eval()
    shared = DirectPreference(beta=BETA, reference=adapters_off).losses(model, tensors)[PAIRS]
    copied = DirectPreference(beta=BETA, reference=FrozenCopy(initial)).losses(model, tensors)[PAIRS]
    torch.testing.assert_close(shared, copied)
    model.train()
    with adapters_off(model) as reference:  # no dropout in the reference
        torch.testing.assert_close(answer_log_probs(reference, tensors), answer_log_probs(initial, tensors))
    assert model.training


def test_a_pair_as_tensors(tmp_path: Path) -> None:
    rows = PreferenceRows(
        [part_of(tmp_path / "0.arrow", [([1, 2, 3], [4, 5], [6]), ([7], [8, 9, 10], [11])])], context=8, split="train"
    )
    batch = rows.collate(np.array([1, 0]))
    ids, targets = batch.tensors["input_ids"].tolist(), batch.tensors["targets"].tolist()
    assert ids[0][:3] == [7, 8, 9]
    assert targets[0][:3] == [8, 9, 10]
    assert ids[1][:4] == [1, 2, 3, 4]
    assert targets[1][:5] == [-100, -100, 4, 5, -100]
    assert (ids[2][0], targets[2][:2]) == (7, [11, -100])
    assert (ids[3][:3], targets[3][:4]) == ([1, 2, 3], [-100, -100, 6, -100])
    assert {len(row) for row in ids + targets} == {8}
    assert (batch.counts, batch.tokens) == ({PAIRS: 2}, 3 + 4 + 1 + 3)


def test_the_prompt_gives_way_first_and_from_its_beginning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt, long = list(range(10, 20)), list(range(30, 37))
    part = part_of(
        tmp_path / "0.arrow", [(prompt, long, [50, 51]), ([1, 2], list(range(60, 75)), [3]), ([1], [2], [3])]
    )
    rows = PreferenceRows([part], context=9, split="train")
    assert "2 of 3 pairs in train are longer than the context of 9 tokens" in capsys.readouterr().err
    ids, targets = (rows.collate(np.array([0])).tensors[name].tolist() for name in ("input_ids", "targets"))
    assert (ids[0], targets[0]) == ([17, 18, 19, *long[:-1]], [-100, -100, *long])
    assert (ids[1][:4], targets[1][:4]) == ([17, 18, 19, 50], [-100, -100, 50, 51])  # both have the same prompt
    ids, targets = (rows.collate(np.array([1])).tensors[name].tolist() for name in ("input_ids", "targets"))
    assert (ids[0], targets[0]) == ([2, *range(60, 68)], list(range(60, 69)))  # one token of the prompt stays


def test_a_pair_without_prompt_has_targets_from_its_second_token(tmp_path: Path) -> None:
    rows = PreferenceRows([part_of(tmp_path / "0.arrow", [([], [4, 5, 6], [7])])], context=8, split="train")
    batch = rows.collate(np.array([0]))
    assert batch.tensors["targets"][:, :3].tolist() == [[5, 6, -100], [-100, -100, -100]]
    objective = DirectPreference(beta=1.0, reference=FrozenCopy(GPT(LLAMA).initialise(1)))
    assert torch.isfinite(objective.losses(GPT(LLAMA).initialise(0), batch.tensors)[PAIRS])


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_a_step_has_the_same_gradient_at_any_world_size(tmp_path: Path, num_ranks: int) -> None:
    pairs = make_pairs(3, count=5)
    initial = GPT(LLAMA).initialise(0)
    objective = DirectPreference(beta=BETA, reference=FrozenCopy(initial))
    rows = PreferenceRows([part_of(tmp_path / "0.arrow", pairs)], context=CONTEXT, split="train")
    feed = RowFeed(rows, samples_per_step=8, seed=0)  # more than there are: some ranks get nothing
    model = changed(GPT(LLAMA).initialise(0))
    assert feed.totals(1) == {PAIRS: 5}
    for rank in range(num_ranks):
        batch = feed.read(1, *deal(8, rank, num_ranks))
        (objective.losses(model, batch.tensors)[PAIRS] / 5).backward()
    alone = changed(GPT(LLAMA).initialise(0))
    (papers_loss(alone, initial, pairs) / 5).backward()
    for mine, theirs in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_a_pair_of_padding_costs_nothing(tmp_path: Path) -> None:
    rows = PreferenceRows([part_of(tmp_path / "0.arrow", make_pairs(4))], context=CONTEXT, split="train")
    batch = rows.collate(np.zeros(0, dtype=np.int64))
    model = GPT(GPT2).initialise(0)
    loss = DirectPreference(beta=BETA, reference=FrozenCopy(model)).losses(model, batch.tensors)[PAIRS]
    loss.backward()
    assert (batch.counts, batch.tokens, float(loss.detach())) == ({PAIRS: 0}, 0, 0.0)
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_scores_of_two_ranks_are_those_of_one(tmp_path: Path) -> None:
    pairs = make_pairs(5)
    initial, model = GPT(LLAMA).initialise(0), changed(GPT(LLAMA).initialise(0)).eval()
    objective = DirectPreference(beta=BETA, reference=FrozenCopy(initial))
    examples = RowExamples(PreferenceRows([part_of(tmp_path / "0.arrow", pairs)], context=CONTEXT, split="validation"))
    assert examples.count == 6

    def scored(cuts: list[tuple[int, int]]) -> Any:
        scorer = objective.scorer()
        assert scorer.needs_outputs
        for cut in cuts:
            batch = examples.read(*cut)
            with torch.no_grad():
                losses = {name: float(x) for name, x in objective.losses(model, batch.tensors).items()}
                scorer.add(batch, losses, objective.outputs(model, batch.tensors))
        return scorer.state()

    whole = objective.scorer().result([scored([(0, 6)])])
    parts = objective.scorer().result([scored([(0, 1), (1, 4)]), scored([(4, 6)])])
    with torch.no_grad():
        margins = [
            BETA
            * float(
                (log_prob(model, p, c) - log_prob(initial, p, c)) - (log_prob(model, p, r) - log_prob(initial, p, r))
            )
            for p, c, r in pairs
        ]
        loss = float(papers_loss(model, initial, pairs)) / 6
    for scores in (whole, parts):
        assert scores.metrics["loss"] == pytest.approx(loss, rel=1e-5)
        assert scores.metrics["reward_margin"] == pytest.approx(float(np.mean(margins)), rel=1e-4)
        assert scores.metrics["reward_accuracy"] == pytest.approx(np.mean(np.array(margins) > 0))


def test_the_probe_reads_logits(tmp_path: Path) -> None:
    model = GPT(LLAMA).initialise(0).eval()
    objective = DirectPreference(beta=BETA, reference=FrozenCopy(model))
    rows = PreferenceRows([part_of(tmp_path / "0.arrow", make_pairs(6))], context=CONTEXT, split="train")
    probe = objective.inputs(rows.collate(np.arange(2)).tensors)
    torch.testing.assert_close(objective.outputs(model, probe)["logits"], model(probe["input_ids"]))
