"""One class for a text or a pair of texts (Devlin et al. 2018, 4.1): fine-tuning of encoders.

B rows, T tokens, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from model.loss import IGNORED_TARGET
from orchestrator.data.labelled.windows import truncate_pair
from orchestrator.data.load.next_sentence import PairIds
from orchestrator.data.load.order import Indices
from orchestrator.objectives.encoder_inputs import LOSS, TARGETS, ClassObjective, Texts, framed
from orchestrator.objectives.protocol import Batch, Scorer, Tensors
from orchestrator.objectives.rows import RowTable, cut_rows
from orchestrator.objectives.scores.classification import ClassificationScores
from orchestrator.objectives.scores.mean_loss import MeanLoss
from orchestrator.objectives.scores.result import Scores


class Classification(ClassObjective):
    """`Objective` of one class a row: `logits` [B, C]."""

    def scorer(self) -> Scorer:
        """As Objective."""
        return ClassificationScorer(self._labels)


class ClassificationScorer:
    """`Scorer` of one class a row: loss, accuracy, macro F1, the confusion matrix."""

    needs_outputs = True

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = tuple(labels)
        self._classes, self._loss = ClassificationScores(self._labels), MeanLoss()

    def add(self, batch: Batch, losses: Mapping[str, float], outputs: Tensors) -> None:
        """As Scorer."""
        self._loss.add(losses[LOSS], batch.counts[LOSS])
        self._classes.add(outputs["logits"].argmax(-1).numpy(), batch.tensors[TARGETS].numpy())

    def state(self) -> Any:
        """As Scorer."""
        return self._classes.state(), self._loss.state()

    def result(self, states: Sequence[Any]) -> Scores:
        """As Scorer."""
        classes, loss = ClassificationScores(self._labels), MeanLoss()
        classes.merge(state for state, _ in states)
        loss.merge(state for _, state in states)
        return loss.beside(classes.result())


class ClassificationRows:
    """`Rows` of texts and pairs, cut to the context: of a pair the longer text gives way first."""

    part = LOSS

    def __init__(self, table: RowTable, frame: PairIds, *, context: int) -> None:
        self.table, self._frame, self._context = table, frame, context
        first, second = table.lengths("input_ids"), table.lengths("pair_ids")
        lengths = np.minimum(first + second + np.where(second > 0, 3, 2), context)
        self.pieces = cut_rows(lengths, lengths, {}, one_target=True)
        self._labels = table.numbers("label").astype(np.int64)

    def collate(self, numbers: Indices) -> Batch:
        """As Rows: `targets` [B]. `Batch.rows` are the numbers of the rows."""
        rows = numbers.tolist()
        tensors = framed([self._texts(row) for row in rows], self._frame, context=self._context)
        targets_B = self._labels[numbers] if rows else np.array([IGNORED_TARGET])
        tensors[TARGETS] = torch.from_numpy(targets_B)
        return Batch(tensors, {LOSS: len(rows)}, int(self.pieces.lengths[numbers].sum()), rows)

    def _texts(self, row: int) -> Texts:
        first, second = self.table.row("input_ids", row), self.table.row("pair_ids", row)
        if not len(second):
            return first[: self._context - 2], None
        a, b = truncate_pair(len(first), len(second), room_tokens=self._context - 3)
        return first[:a], second[:b]
