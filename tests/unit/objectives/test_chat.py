"""Packed chats teach what the same chats teach one by one, and each comes once an epoch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from model.config import ModelConfig
from model.gpt import GPT
from orchestrator.data.labelled.shards import write_rows
from orchestrator.data.load.mixture import Part
from orchestrator.data.load.order import deal, micro_batches
from orchestrator.errors import JobError
from orchestrator.objectives.causal_lm import LOSS
from orchestrator.objectives.chat import ChatExamples, ChatFeed, ChatLM, PackedRows, no_chats

CONTEXT = 24
CONFIGS = [
    ModelConfig(vocab_size=97, layers=2, width=32, heads=4, kv_heads=2, hidden=64, context=CONTEXT),
    ModelConfig(family="gpt2", vocab_size=97, layers=2, width=32, heads=4, kv_heads=4, hidden=64, context=CONTEXT),
]
Row = tuple[list[int], list[int]]


def make_rows(lengths: list[int], seed: int) -> list[Row]:
    """Each row's first token is a number of its own; the first third is the user's."""
    rng = np.random.default_rng(seed)
    return [
        ([10 + i, *rng.integers(50, 97, n - 1).tolist()], [0 if at <= n // 3 else 1 for at in range(n)])
        for i, n in enumerate(lengths)
    ]


def write(path: Path, rows: list[Row]) -> Path:
    columns: dict[str, Any] = {
        "input_ids": [np.array(ids, dtype=np.uint16) for ids, _ in rows],
        "loss_mask": [np.array(mask, dtype=np.uint8) for _, mask in rows],
    }
    write_rows(path, columns, {"kind": "chat"})
    return path


ROWS = make_rows([9, 5, 25, 3, 14, 2, 8, 11, 6, 4, 7, 10], seed=1)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Part]:
    folder = tmp_path_factory.mktemp("chats")
    return [
        Part("first", None, [write(folder / "0.arrow", ROWS[:3]), write(folder / "1.arrow", ROWS[3:8])]),
        Part("second", None, [write(folder / "2.arrow", ROWS[8:])]),
    ]


def feed_of(parts: list[Part], samples: int = 2, **more: Any) -> ChatFeed:
    return ChatFeed(parts, context=CONTEXT, samples_per_step=samples, seed=3, **more)


def loss_alone(model: GPT, row: Row) -> torch.Tensor:
    ids, mask = (torch.tensor(values) for values in row)
    logits = model(ids[None, :-1])[0]
    return F.cross_entropy(logits[mask[1:] == 1], ids[1:][mask[1:] == 1], reduction="sum")


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.family)
def test_packed_rows_have_the_losses_and_gradients_of_the_rows_alone(parts: list[Part], config: ModelConfig) -> None:
    packed, alone = GPT(config).initialise(0), GPT(config).initialise(0)
    examples = ChatExamples(parts, context=CONTEXT, split="validation")
    batch = examples.read(0, examples.count)
    assert len(batch.tensors["input_ids"]) < len(ROWS)  # there are rows beside each other

    found = ChatLM().losses(packed, batch.tensors)[LOSS]
    found.backward()
    wanted = torch.stack([loss_alone(alone, row) for row in ROWS]).sum()
    wanted.backward()

    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert batch.counts[LOSS] == sum(sum(mask[1:]) for _, mask in ROWS)
    assert batch.tokens == sum(len(ids) - 1 for ids, _ in ROWS)
    gradients = zip(packed.named_parameters(), alone.parameters(), strict=True)
    for (name, mine), other in gradients:
        assert mine.grad is not None, name
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_without_the_mask_the_losses_would_differ(parts: list[Part]) -> None:
    model = GPT(CONFIGS[0]).initialise(0)
    tensors = ChatExamples(parts, context=CONTEXT, split="validation").read(0, 4).tensors
    blind = {**tensors, "segments": torch.ones_like(tensors["segments"])}
    apart, together = (float(ChatLM().losses(model, t)[LOSS].detach()) for t in (tensors, blind))
    assert apart != pytest.approx(together, rel=1e-5)


def test_a_target_counts_where_it_is_the_assistants(tmp_path: Path) -> None:
    path = write(tmp_path / "0.arrow", [([1, 2, 3, 4, 5], [0, 0, 1, 0, 1])])
    batch = ChatExamples([Part("all", None, [path])], context=6, split="test").read(0, 1)
    assert batch.tensors["input_ids"].tolist() == [[1, 2, 3, 4, 0, 0]]
    assert batch.tensors["targets"].tolist() == [[-100, 3, -100, 5, -100, -100]]
    assert batch.tensors["positions"].tolist() == [[0, 1, 2, 3, 0, 0]]
    assert batch.tensors["segments"].tolist() == [[1, 1, 1, 1, 0, 0]]
    assert (batch.counts[LOSS], batch.tokens) == (2, 4)


def rows_in(feed: ChatFeed, steps: range, *, samples: int, num_ranks: int, accumulation: int) -> list[int]:
    """The first tokens of all rows of these steps, in the order in which they are dealt."""
    found = []
    for step in steps:
        for rank in range(num_ranks):
            for first, last in micro_batches(*deal(samples, rank, num_ranks), accumulation):
                tensors = feed.read(step, first, last).tensors
                begins = (tensors["positions"] == 0) & (tensors["segments"] > 0)
                found += tensors["input_ids"][begins].tolist()
    return found


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_the_order_is_the_same_at_any_world_size_and_each_row_comes_once_an_epoch(
    parts: list[Part], num_ranks: int
) -> None:
    bins = PackedRows([parts], context=CONTEXT).bins
    feed = feed_of(parts, samples=bins)
    alone = rows_in(feed, range(1, 4), samples=bins, num_ranks=1, accumulation=1)
    assert rows_in(feed, range(1, 4), samples=bins, num_ranks=num_ranks, accumulation=2) == alone
    epochs = [alone[at : at + len(ROWS)] for at in range(0, len(alone), len(ROWS))]
    assert [sorted(epoch) for epoch in epochs] == [sorted(ids[0] for ids, _ in ROWS)] * 3
    assert epochs[0] != epochs[1]


def test_weights_say_how_often_a_part_comes(parts: list[Part]) -> None:
    weighted = [Part("first", 1.0, parts[0].shard_paths), Part("second", 3.0, parts[1].shard_paths)]
    feed = feed_of(weighted, samples=4)
    seen = Counter()
    for step in range(1, 21):
        tensors = feed.read(step, 0, 4).tensors
        for line in range(4):
            begins = (tensors["positions"][line] == 0) & (tensors["segments"][line] > 0)
            origins = {
                "first" if 10 <= token < 18 else "second" for token in tensors["input_ids"][line][begins].tolist()
            }
            assert len(origins) == 1  # no bin has rows of two parts
            seen.update(origins)
    assert seen == {"first": 20, "second": 60}
    told = feed.seen(20)
    assert told["second"].epochs == pytest.approx(60 / PackedRows([[parts[1]]], context=CONTEXT).bins)
    assert feed_of(parts).seen(20) == {}


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30), context=st.integers(2, 30))
def test_every_token_that_fits_is_there_once(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], context: int
) -> None:
    path = write(tmp_path_factory.mktemp("rows") / "0.arrow", [([5] * n, [1] * n) for n in lengths])
    examples = ChatExamples([Part("all", None, [path])], context=context, split="test")
    batch = examples.read(0, examples.count)
    assert batch.counts[LOSS] == sum(min(n - 1, context) for n in lengths)


def test_a_row_that_is_too_long_loses_its_end_and_people_are_told_once(
    parts: list[Part], capsys: pytest.CaptureFixture[str]
) -> None:
    feed = ChatFeed(parts, context=12, samples_per_step=1, seed=0)
    feed.read(1, 0, 1)
    assert capsys.readouterr().err.count("2 of 12 chats in the training split are longer than the context") == 1
    feed_of(parts)
    assert "longer" not in capsys.readouterr().err


def test_a_rank_without_samples_can_be_passed_forward(parts: list[Part]) -> None:
    feed = feed_of(parts)
    batch = feed.read(1, 1, 1)
    assert (batch.counts[LOSS], batch.tokens) == (0, 0)
    assert batch.tensors.keys() == no_chats(CONTEXT).tensors.keys() == feed.read(1, 0, 1).tensors.keys()
    model = GPT(CONFIGS[1]).initialise(0)
    loss = ChatLM().losses(model, batch.tensors)[LOSS]
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_without_rows_there_is_nothing_to_learn(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="no chats"):
        ChatFeed([Part("all", None, [])], context=8, samples_per_step=1, seed=0)
    assert ChatExamples([Part("all", None, [])], context=8, split="validation").count == 0


def test_the_probe_reads_ids_as_one_text(parts: list[Part]) -> None:
    model, objective = GPT(CONFIGS[0]).initialise(0).eval(), ChatLM()
    tensors = objective.inputs(feed_of(parts).read(1, 0, 2).tensors)
    assert list(tensors) == ["input_ids"]
    torch.testing.assert_close(objective.outputs(model, tensors)["logits"], model(tensors["input_ids"]))


def test_scores_are_of_learned_tokens(parts: list[Part]) -> None:
    model, objective = GPT(CONFIGS[0]).initialise(0).eval(), ChatLM()
    examples = ChatExamples(parts, context=CONTEXT, split="validation")
    scorer, total = objective.scorer(), 0.0
    for first in range(examples.count):
        batch = examples.read(first, first + 1)
        loss = float(objective.losses(model, batch.tensors)[LOSS].detach())
        scorer.add(batch, {LOSS: loss}, {})
        total += loss
    learned = sum(sum(mask[1:]) for _, mask in ROWS)
    assert scorer.result([scorer.state()]).metrics["loss"] == pytest.approx(total / learned)
