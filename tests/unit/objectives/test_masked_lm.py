"""Masked language modelling: what is hidden where, what it costs, and that epochs differ while ranks do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_fixtures import FRAME, MASK_ID, VOCAB, encoder, mean_loss, overfit, read_step, score, twin
from torch import nn

from model.config import HeadConfig
from orchestrator.data.load.loader import TrainLoader
from orchestrator.data.load.masking import Masking
from orchestrator.data.load.mixture import Part
from orchestrator.data.load.stream import TokenStream
from orchestrator.data.shards import write_shard
from orchestrator.errors import DataError
from orchestrator.objectives.encoder_inputs import IDS, MASK, SEGMENTS, TARGETS
from orchestrator.objectives.masked_data import Framing, MaskedExamples, MaskedFeed
from orchestrator.objectives.masked_lm import FOLLOWS, GUESSES, MLM, NEXT_SENTENCE, PLACES, MaskedLM
from orchestrator.objectives.masked_pairs import PairExamples, PairFeed
from orchestrator.objectives.protocol import Batch

CONTEXT = 24
SPECIAL = np.arange(VOCAB) < 5
MASKING = Masking(MASK_ID, SPECIAL, seed=3)
ONE = Framing(CONTEXT, FRAME)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two shards of documents of four sentences of 9 tokens."""
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    paths = [folder / "0.arrow", folder / "1.arrow"]
    for path, count in zip(paths, (12, 7), strict=True):
        documents = [rng.integers(5, VOCAB, 36).astype(np.uint16) for _ in range(count)]
        write_shard(path, documents, [np.array([9, 18, 27, 36])] * count)
    return paths


def runs(paths: list[Path], framing: Framing = ONE, *, per_step: int = 6) -> MaskedFeed:
    loader = TrainLoader([Part("all", None, paths)], context=framing.room, samples_per_step=per_step, seed=1)
    return MaskedFeed(loader, framing, MASKING, samples_per_step=per_step)


def pairs(paths: list[Path], *, per_step: int = 6) -> PairFeed:
    return PairFeed([Part("all", None, paths)], FRAME, MASKING, context=CONTEXT, samples_per_step=per_step)


def unmasked(batch: Batch) -> torch.Tensor:
    """The ids as they were before some were hidden."""
    ids_BT = batch.tensors[IDS].clone()
    for row, places, targets in zip(ids_BT, batch.tensors[PLACES], batch.tensors[TARGETS], strict=True):
        row[places[targets != -100]] = targets[targets != -100]
    return ids_BT


def hidden(batch: Batch) -> list[dict[int, int]]:
    """What is hidden of each sample, by place."""
    return [
        {place: target for place, target in zip(places, targets, strict=True) if target != -100}
        for places, targets in zip(batch.tensors[PLACES].tolist(), batch.tensors[TARGETS].tolist(), strict=True)
        if batch.counts[MLM]
    ]


@pytest.mark.parametrize("framing", [ONE, Framing(CONTEXT, None)])
def test_a_run_of_the_stream_stands_in_its_frame(shards: list[Path], framing: Framing) -> None:
    flat = TokenStream(shards)
    stream = flat.rows(np.array([0]), len(flat))[0].tolist()
    feed = runs(shards, framing)
    batch = feed.read(1, 0, 6)
    frame = 2 if framing.frame else 0
    for i, row in enumerate(unmasked(batch).tolist()):
        if frame:
            assert (row[0], row.pop(), row.pop(0)) == (2, 3, 2)
        sample = batch.rows[i]
        assert row == stream[sample * framing.room : (sample + 1) * framing.room]
    hidden = 3 if frame else 4  # 15 % of 22, and of 24
    assert batch.counts == {MLM: 6 * hidden}
    assert batch.tensors[PLACES].shape == (6, 4)
    assert batch.tokens == 6 * CONTEXT
    assert (batch.tensors[TARGETS] != -100).sum() == batch.counts[MLM]


@pytest.mark.parametrize("recipe", [runs, pairs])
@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_what_is_hidden_depends_on_the_epoch_and_not_on_the_world_size(
    shards: list[Path], recipe, num_ranks: int
) -> None:
    feed = recipe(shards)
    for step in (1, 5, 11):
        alone, shared = feed.read(step, 0, 6), read_step(recipe(shards), step, num_ranks=num_ranks)
        assert [row for batch in shared for row in hidden(batch)] == hidden(alone)
        assert [row for batch in shared for row in batch.rows] == list(alone.rows)
        for part in alone.counts:
            assert sum(batch.counts[part] for batch in shared) == alone.counts[part]
    epochs: list[dict[int, dict[int, int]]] = [{}, {}]
    for step in range(1, 200):
        batch = feed.read(step, 0, 6)
        for sample, own in zip(batch.rows, hidden(batch), strict=True):
            epochs[sample in epochs[0]].setdefault(sample, own)
    assert len(epochs[0]) == len(epochs[1]) > 25
    assert sum(epochs[0][sample] == epochs[1][sample] for sample in epochs[0]) < 5


def test_pairs_are_framed_padded_and_cut_to_the_longest(shards: list[Path]) -> None:
    batch = pairs(shards, per_step=20).read(1, 0, 20)
    width = batch.tensors[IDS].shape[1]
    lengths = batch.tensors[MASK].sum(1)
    assert width <= CONTEXT
    assert width - int(lengths.max()) < 8
    assert batch.tokens == int(lengths.sum())
    assert batch.counts == {MLM: int((batch.tensors[TARGETS] != -100).sum()), NEXT_SENTENCE: 20}
    flat = TokenStream(shards)
    stream = flat.rows(np.array([0]), len(flat))[0].tolist()
    for row, segments, length, elsewhere in zip(
        unmasked(batch).tolist(),
        batch.tensors[SEGMENTS],
        lengths.tolist(),
        batch.tensors[FOLLOWS].tolist(),
        strict=True,
    ):
        assert row[0] == 2
        first, second = (" ".join(map(str, row[a:b])) for a, b in _parts(row[:length]))
        assert int(segments.sum()) == len(second.split()) + 1
        assert (f"{first} {second}" in " ".join(map(str, stream))) == (elsewhere == 0)


def _parts(row: list[int]) -> list[tuple[int, int]]:
    middle = row.index(3)
    return [(1, middle), (middle + 1, len(row) - 1)]


@pytest.mark.parametrize("recipe", [runs, pairs])
def test_an_empty_share_can_be_passed_forward(shards: list[Path], recipe) -> None:
    feed = recipe(shards)
    empty, some = feed.read(1, 3, 3), feed.read(1, 0, 6)
    assert set(empty.tensors) == set(some.tensors)
    assert (set(empty.counts.values()), empty.tokens) == ({0}, 0)
    head = HeadConfig("pretraining" if recipe is pairs else "mlm")
    objective, model = MaskedLM(next_sentence=recipe is pairs), encoder(head, context=CONTEXT).eval()
    assert {float(value.detach()) for value in objective.losses(model, empty.tensors).values()} == {0.0}
    both = mean_loss(objective, model, [empty, some])
    assert both.item() == pytest.approx(mean_loss(objective, model, [some]).item(), abs=1e-6)


def labels_of(batch: Batch) -> torch.Tensor:
    """Labels [B, T] as transformers wants them."""
    labels_BT = torch.full_like(batch.tensors[IDS], -100)
    for row, places, targets in zip(labels_BT, batch.tensors[PLACES], batch.tensors[TARGETS], strict=True):
        row[places[targets != -100]] = targets[targets != -100]
    return labels_BT


@torch.no_grad()
def of_transformers(model: nn.Module, batch: Batch) -> float:
    given = {name: batch.tensors[name] for name in (IDS, SEGMENTS, MASK) if name in batch.tensors}
    if FOLLOWS in batch.tensors:
        given["next_sentence_label"] = batch.tensors[FOLLOWS]
    return float(twin(model)(**given, labels=labels_of(batch)).loss)


@pytest.mark.parametrize(("recipe", "kind"), [(runs, "mlm"), (pairs, "pretraining")])
def test_the_loss_is_that_of_transformers(shards: list[Path], recipe, kind) -> None:
    batch = recipe(shards).read(2, 0, 6)
    model = encoder(HeadConfig(kind), context=CONTEXT).eval()
    objective = MaskedLM(next_sentence=kind == "pretraining")
    assert mean_loss(objective, model, [batch]).item() == pytest.approx(of_transformers(model, batch), abs=1e-5)


def test_guesses_are_the_likeliest_of_the_logits(shards: list[Path]) -> None:
    batch = pairs(shards).read(2, 0, 6)
    model, objective = encoder(HeadConfig("pretraining"), context=CONTEXT).eval(), MaskedLM(next_sentence=True)
    guessed = objective.outputs(model, batch.tensors)
    logits = objective.outputs(model, objective.inputs(batch.tensors))
    at = logits["logits"].gather(1, batch.tensors[PLACES][..., None].expand(-1, -1, VOCAB))
    assert torch.equal(guessed[GUESSES], at.argmax(-1))
    assert torch.equal(guessed["next_sentence_logits"], logits["next_sentence_logits"])


@pytest.mark.parametrize("recipe", [runs, pairs])
def test_a_batch_is_learned_by_heart_and_scored(shards: list[Path], recipe) -> None:
    next_sentence = recipe is pairs
    model = encoder(HeadConfig("pretraining" if next_sentence else "mlm"), context=CONTEXT)
    objective, feed = MaskedLM(next_sentence=next_sentence), recipe(shards)
    batch = feed.read(1, 0, 6)
    overfit(objective, model, batch, steps=80)
    found = score(objective, model, [[feed.read(1, 0, 2)], [feed.read(1, 2, 6)]])
    assert found.metrics["masked_accuracy"] > 0.9
    assert found.metrics["loss"] == pytest.approx(mean_loss(objective, model, [batch]).item(), abs=1e-4)
    assert found.metrics["perplexity"] == pytest.approx(np.exp(found.metrics["masked_loss"]))
    assert found.metrics.get("next_sentence_accuracy") == (1.0 if next_sentence else None)


def test_examples_hide_the_same_each_time_and_read_the_split_once(shards: list[Path]) -> None:
    examples = MaskedExamples(TokenStream(shards), ONE, MASKING)
    assert examples.count == 31  # (19 x 36 - 1) // 22
    whole, parts = examples.read(0, 31), [examples.read(0, 10), examples.read(10, 31)]
    for name, tensor in whole.tensors.items():
        assert torch.equal(tensor, torch.cat([part.tensors[name] for part in parts]))
    paired = PairExamples(shards, FRAME, MASKING, context=CONTEXT)
    assert paired.count == 19 * 36 // 21
    assert sum(paired.read(a, b).counts[NEXT_SENTENCE] for a, b in ((0, 7), (7, paired.count))) == paired.count
    assert torch.equal(paired.read(3, 9).tensors[PLACES], paired.read(3, 9).tensors[PLACES])


def test_a_split_shorter_than_a_sample_is_one_short_sample(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.arrow", [np.arange(5, 12, dtype=np.uint16)])
    examples = MaskedExamples(TokenStream([tmp_path / "0.arrow"]), ONE, MASKING)
    batch = examples.read(0, 1)
    assert examples.count == 1
    assert unmasked(batch).tolist() == [[2, *range(5, 12), 3]]
    assert examples.read(1, 1).counts == {MLM: 0}


def test_parts_with_weights_have_pairs_of_their_own(shards: list[Path]) -> None:
    parts = [Part("a", 3.0, shards[:1]), Part("b", 1.0, shards[1:])]
    feed = PairFeed(parts, FRAME, MASKING, context=CONTEXT, samples_per_step=8)
    first = 12 * 36 // 21
    for step in (1, 2, 7):
        assert sum(sample >= first for sample in feed.read(step, 0, 8).rows) == 2
    assert feed.seen(6)["b"].epochs == pytest.approx(1.0)
    assert feed.seen(6)["b"].tokens == 7 * 36


def test_pairs_need_to_know_where_sentences_end(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.arrow", [np.arange(5, 40, dtype=np.uint16)] * 3)
    with pytest.raises(DataError, match="where sentences end") as caught:
        pairs([tmp_path / "0.arrow"])
    assert "data.sentence_ends: true" in str(caught.value.fix)
