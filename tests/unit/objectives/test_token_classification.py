"""A class a word: at its first token, rows cut between words, entities whole across cuts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_fixtures import FRAME, VOCAB, encoder, ids, mean_loss, overfit, read_step, score, table, twin
from hypothesis import given
from hypothesis import strategies as st

from model.config import HeadConfig
from orchestrator.objectives.encoder_inputs import IDS, LOSS, MASK, SEGMENTS, TARGETS
from orchestrator.objectives.protocol import Batch
from orchestrator.objectives.rows import RowFeed, RowTable
from orchestrator.objectives.token_classification import (
    TokenClassification,
    TokenClassificationRows,
    TokenClassificationScorer,
    Words,
)

LABELS = ("B-place", "I-place", "O")
Sizes = list[list[int]]
"""Rows of words, each with its number of tokens."""


def worded(folder: Path, sizes: Sizes, *, seed: int = 0) -> RowTable:
    rng = np.random.default_rng(seed)
    return table(
        folder,
        [
            {
                "input_ids": [ids(rng, sum(row)) for row in sizes],
                "word_starts": [np.cumsum([0, *row[:-1]]).astype(np.int32) for row in sizes],
                "tags": [rng.integers(0, 3, len(row)).astype(np.int32) for row in sizes],
                "words": [["w"] * len(row) for row in sizes],
            }
        ],
    )


def test_labels_stand_at_the_first_tokens(tmp_path: Path) -> None:
    made = worded(tmp_path, [[1, 3, 1], [2]])
    batch = TokenClassificationRows(made, FRAME, context=16).collate(np.array([0, 1]))
    first, second = (made.row("input_ids", i).tolist() for i in (0, 1))
    a, b, c, d = *made.row("tags", 0).tolist(), *made.row("tags", 1).tolist()
    assert batch.tensors[IDS].tolist() == [[2, *first, 3, 0], [2, *second, 3, 0, 0, 0, 0]]
    assert batch.tensors[TARGETS].tolist() == [
        [-100, a, b, -100, -100, c, -100, -100],
        [-100, d, -100, -100, -100, -100, -100, -100],
    ]
    assert batch.counts == {LOSS: 4}
    assert batch.tokens == 11
    assert batch.rows == [Words(0, 0, 3, 3), Words(1, 0, 1, 1)]


@given(
    sizes=st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=20), min_size=1, max_size=6),
    context=st.integers(5, 24),
)
def test_long_rows_are_cut_between_words_and_none_is_lost(
    tmp_path_factory: pytest.TempPathFactory, sizes: Sizes, context: int
) -> None:
    made = worded(tmp_path_factory.mktemp("words"), sizes)
    rows = TokenClassificationRows(made, FRAME, context=context)
    batch = rows.collate(np.arange(len(rows.pieces)))
    assert batch.tensors[IDS].shape[1] <= context
    assert batch.tensors[MASK].sum(1).tolist() == rows.pieces.lengths.tolist()
    found: list[list[int]] = [[] for _ in sizes]
    for i, words in enumerate(batch.rows):
        at = torch.nonzero(batch.tensors[TARGETS][i] != -100)[:, 0]
        starts = made.row("word_starts", words.row)[words.first : words.end]
        assert batch.tensors[IDS][i, at].tolist() == made.row("input_ids", words.row)[starts].tolist()
        found[words.row] += batch.tensors[TARGETS][i, at].tolist()
    assert found == [made.row("tags", i).tolist() for i in range(len(sizes))]
    assert batch.counts[LOSS] == sum(map(len, sizes)) == rows.pieces.targets.sum()


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_all_words_come_once_an_epoch_at_any_world_size(tmp_path: Path, num_ranks: int) -> None:
    rng = np.random.default_rng(0)
    rows = TokenClassificationRows(
        worded(tmp_path, [rng.integers(1, 4, n).tolist() for n in rng.integers(1, 30, 23)]), FRAME, context=16
    )
    feed = RowFeed(rows, samples_per_step=8, seed=1)
    seen: list[Words] = []
    for step in range(1, -(-len(rows.pieces) // 8) + 1):
        batches = read_step(feed, step, num_ranks=num_ranks, accumulation=2)
        assert sum(batch.counts[LOSS] for batch in batches) == feed.totals(step)[LOSS]
        seen += [words for batch in batches for words in batch.rows]
    assert len(seen) == len(set(seen)) == len(rows.pieces) > 23
    assert sum(words.end - words.first for words in seen) == rows.table.lengths("tags").sum()


def test_the_loss_is_that_of_transformers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = TokenClassificationRows(
        worded(tmp_path, [rng.integers(1, 4, 7).tolist() for _ in range(5)]), FRAME, context=32
    )
    batch = rows.collate(np.arange(5))
    model = encoder(HeadConfig("token-classification", LABELS)).eval()
    with torch.no_grad():
        theirs = twin(model)(
            **{name: batch.tensors[name] for name in (IDS, SEGMENTS, MASK)}, labels=batch.tensors[TARGETS]
        )
    assert mean_loss(TokenClassification(LABELS), model, [batch]).item() == pytest.approx(theirs.loss.item(), abs=1e-5)


def sixteen(folder: Path) -> RowTable:
    """Rows whose tags follow from their words."""
    rng = np.random.default_rng(3)
    words = [rng.integers(5, VOCAB, n) for n in rng.integers(2, 24, 16)]
    tags = [np.where(row % 3 == 0, np.where(np.roll(row, 1) % 3 == 0, 1, 0), 2) for row in words]
    return table(
        folder,
        [
            {
                "input_ids": [row.astype(np.uint16) for row in words],
                "word_starts": [np.arange(len(row), dtype=np.int32) for row in words],
                "tags": [row.astype(np.int32) for row in tags],
                "words": [[str(word) for word in row] for row in words],
            }
        ],
    )


def test_sixteen_rows_are_learned_by_heart(tmp_path: Path) -> None:
    rows = TokenClassificationRows(sixteen(tmp_path), FRAME, context=16)
    model, objective = encoder(HeadConfig("token-classification", LABELS)), TokenClassification(LABELS)
    everything = np.arange(len(rows.pieces))
    assert len(everything) > 16
    overfit(objective, model, rows.collate(everything))
    found = score(objective, model, [[rows.collate(everything[::2])], [rows.collate(everything[1::2])]])
    assert found.metrics["f1"] > 0.95
    assert found.metrics["token_accuracy"] > 0.95
    assert found.metrics["loss"] < 0.3


def judged(
    words: list[Words], truth: list[list[int]], predicted: list[list[int]]
) -> tuple[Batch, dict[str, torch.Tensor]]:
    targets = torch.tensor([[-100, *row] for row in truth])
    logits = torch.nn.functional.one_hot(torch.tensor([[0, *row] for row in predicted]), 3).float()
    return Batch({TARGETS: targets}, {LOSS: targets.numel() - len(words)}, 0, words), {"logits": logits}


def test_an_entity_across_a_cut_is_one_on_whichever_ranks_its_pieces_are() -> None:
    first = judged([Words(7, 0, 2, 4)], [[2, 0]], [[2, 0]])
    second = judged([Words(7, 2, 4, 4)], [[1, 2]], [[1, 2]])
    ranks = [TokenClassificationScorer(LABELS), TokenClassificationScorer(LABELS)]
    ranks[1].add(first[0], {LOSS: 1.0}, first[1])
    ranks[0].add(second[0], {LOSS: 2.0}, second[1])
    found = ranks[0].result([rank.state() for rank in ranks])
    assert found.tables["types"].rows == (("place", 1.0, 1.0, 1.0, 1),)
    assert found.metrics["loss"] == pytest.approx(3.0 / 4)


def test_tags_that_spell_no_entities_are_classes() -> None:
    scorer = TokenClassificationScorer(("noun", "verb", "other"))
    batch, outputs = judged([Words(0, 0, 3, 3)], [[0, 1, 2]], [[0, 1, 1]])
    scorer.add(batch, {LOSS: 3.0}, outputs)
    found = scorer.result([scorer.state()])
    assert found.metrics == pytest.approx({"loss": 1.0, "token_accuracy": 2 / 3, "macro_f1": (1 + 2 / 3 + 0) / 3})
