"""One class a row: what the model reads, what it learns, and how it is scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_fixtures import FRAME, encoder, ids, mean_loss, overfit, score, table, twin

from model.config import HeadConfig
from orchestrator.objectives.classification import Classification, ClassificationRows
from orchestrator.objectives.encoder_inputs import IDS, LOSS, MASK, SEGMENTS, TARGETS
from orchestrator.objectives.rows import RowTable

LABELS = ("bad", "good", "mixed")


def pairs(folder: Path, count: int = 16, *, seed: int = 0) -> RowTable:
    rng = np.random.default_rng(seed)
    return table(
        folder,
        [
            {
                "input_ids": [ids(rng, n) for n in rng.integers(1, 14, count)],
                "pair_ids": [ids(rng, n) for n in rng.integers(0, 14, count)],
                "label": (np.arange(count) % 3).astype(np.int32),
            }
        ],
    )


def test_texts_and_pairs_are_framed_and_cut(tmp_path: Path) -> None:
    made = table(
        tmp_path,
        [
            {
                "input_ids": [np.arange(10, 13, dtype=np.uint16), np.arange(10, 30, dtype=np.uint16)] * 2,
                "pair_ids": [np.zeros(0, np.uint16)] * 2
                + [np.array([40], np.uint16), np.arange(40, 43, dtype=np.uint16)],
                "label": np.array([2, 0, 1, 1], np.int32),
            }
        ],
    )
    rows = ClassificationRows(made, FRAME, context=12)
    assert rows.pieces.lengths.tolist() == [5, 12, 7, 12]
    batch = rows.collate(np.arange(4))
    assert batch.tensors[IDS].tolist() == [
        [2, 10, 11, 12, 3] + [0] * 7,
        [2, *range(10, 20), 3],
        [2, 10, 11, 12, 3, 40, 3] + [0] * 5,
        [2, *range(10, 16), 3, 40, 41, 42, 3],
    ]
    assert batch.tensors[SEGMENTS].sum(1).tolist() == [0, 0, 2, 4]
    assert batch.tensors[MASK].sum(1).tolist() == rows.pieces.lengths.tolist()
    assert batch.tensors[TARGETS].tolist() == [2, 0, 1, 1]
    assert (batch.counts, batch.tokens, batch.rows) == ({LOSS: 4}, 36, [0, 1, 2, 3])


def test_the_loss_is_that_of_transformers(tmp_path: Path) -> None:
    batch = ClassificationRows(pairs(tmp_path), FRAME, context=32).collate(np.arange(16))
    model = encoder(HeadConfig("classification", LABELS)).eval()
    with torch.no_grad():
        theirs = twin(model)(
            **{name: batch.tensors[name] for name in (IDS, SEGMENTS, MASK)}, labels=batch.tensors[TARGETS]
        )
    objective = Classification(LABELS)
    assert mean_loss(objective, model, [batch]).item() == pytest.approx(theirs.loss.item(), abs=1e-5)
    outputs = objective.outputs(model, objective.inputs(batch.tensors))
    assert torch.allclose(outputs["logits"], theirs.logits, atol=1e-5)


def test_the_mean_does_not_depend_on_who_reads_which_rows(tmp_path: Path) -> None:
    rows = ClassificationRows(pairs(tmp_path), FRAME, context=32)
    model, objective = encoder(HeadConfig("classification", LABELS)).eval(), Classification(LABELS)
    whole = mean_loss(objective, model, [rows.collate(np.arange(16))])
    parts = [rows.collate(np.arange(0)), rows.collate(np.arange(5)), rows.collate(np.arange(5, 16))]
    assert mean_loss(objective, model, parts).item() == pytest.approx(whole.item(), abs=1e-6)


def test_labels_are_smoothed_in_training_alone(tmp_path: Path) -> None:
    batch = ClassificationRows(pairs(tmp_path), FRAME, context=32).collate(np.arange(16))
    model = encoder(HeadConfig("classification", LABELS))
    plain, smoothed = Classification(LABELS), Classification(LABELS, label_smoothing=0.2)
    logits = plain.outputs(model, batch.tensors)["logits"]
    wanted = 0.8 * mean_loss(plain, model, [batch]) - 0.2 * logits.log_softmax(-1).mean()
    assert mean_loss(smoothed, model, [batch]).item() == pytest.approx(wanted.item(), abs=1e-5)
    model.eval()
    assert mean_loss(smoothed, model, [batch]) == mean_loss(plain, model, [batch])


def test_sixteen_rows_are_learned_by_heart(tmp_path: Path) -> None:
    rows = ClassificationRows(pairs(tmp_path), FRAME, context=32)
    model, objective = encoder(HeadConfig("classification", LABELS)), Classification(LABELS)
    batch = rows.collate(np.arange(16))
    before = score(objective, model.eval(), [[batch]])
    overfit(objective, model, batch)
    shares = [[rows.collate(np.arange(3))], [rows.collate(np.arange(3, 9)), rows.collate(np.arange(9, 16))]]
    after = score(objective, model, shares)
    assert before.metrics["accuracy"] < 0.8
    assert after.metrics["accuracy"] == after.metrics["macro_f1"] == 1.0
    assert after.metrics["loss"] < 0.1
    assert after.metrics["loss"] == pytest.approx(mean_loss(objective, model, [batch]).item(), abs=1e-5)
    assert after.tables["confusion"].columns == ("truth", *LABELS)
