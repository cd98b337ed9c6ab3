"""A class for each word (Devlin et al. 2018, 5.3): entities, parts of speech.

A word's class is predicted at its first token. B rows, T tokens, C classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from model.loss import IGNORED_TARGET
from orchestrator.data.labelled.windows import word_windows
from orchestrator.data.load.next_sentence import PairIds
from orchestrator.data.load.order import Indices
from orchestrator.objectives.encoder_inputs import IDS, LOSS, TARGETS, ClassObjective, framed
from orchestrator.objectives.protocol import Batch, Scorer, Tensors
from orchestrator.objectives.rows import RowTable, cut_rows
from orchestrator.objectives.scores.classification import ClassificationScores
from orchestrator.objectives.scores.entities import EntityScores, entities
from orchestrator.objectives.scores.mean_loss import MeanLoss
from orchestrator.objectives.scores.result import Scores

_FRAME_TOKENS = 2


class TokenClassification(ClassObjective):
    """`Objective` of one class a word: `logits` [B, T, C]."""

    def scorer(self) -> Scorer:
        """As Objective."""
        return TokenClassificationScorer(self._labels)


class Words(NamedTuple):
    """Words [first, end) of a row of `total`."""

    row: int
    first: int
    end: int
    total: int


class _Tagged(NamedTuple):
    """A piece of a row that was cut, with its classes as numbers."""

    words: Words
    predicted: list[int]
    truth: list[int]


class TokenClassificationScorer:
    """`Scorer` of one class a word: F1 of entities where the labels spell them (`B-person`), else of classes."""

    needs_outputs = True

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = tuple(labels)
        self._scores, self._loss = _scores_of(self._labels), MeanLoss()
        self._cut: list[_Tagged] = []

    def add(self, batch: Batch, losses: Mapping[str, float], outputs: Tensors) -> None:
        """As Scorer. Rows that were cut wait for their other pieces: an entity may stand across a cut."""
        self._loss.add(losses[LOSS], batch.counts[LOSS])
        predicted_BT, truth_BT = outputs["logits"].argmax(-1), batch.tensors[TARGETS]
        for words, predicted_T, truth_T in zip(batch.rows, predicted_BT, truth_BT, strict=True):
            judged = truth_T != IGNORED_TARGET
            piece = _Tagged(words, predicted_T[judged].tolist(), truth_T[judged].tolist())
            if words.end - words.first == words.total:
                self._add(self._scores, piece.predicted, piece.truth)
            else:
                self._cut.append(piece)

    def state(self) -> Any:
        """As Scorer."""
        return self._scores.state(), self._loss.state(), self._cut

    def result(self, states: Sequence[Any]) -> Scores:
        """As Scorer: `loss`, `precision`, `recall`, `f1` and `token_accuracy`; `token_accuracy` and `macro_f1` where
        the labels spell no entities.
        """
        scores, loss = _scores_of(self._labels), MeanLoss()
        scores.merge(state for state, _, _ in states)
        loss.merge(state for _, state, _ in states)
        for predicted, truth in _joined(piece for _, _, pieces in states for piece in pieces):
            self._add(scores, predicted, truth)
        found = scores.result()
        named = {("token_accuracy" if name == "accuracy" else name): value for name, value in found.metrics.items()}
        return loss.beside(Scores(named, found.tables))

    def _add(self, scores: EntityScores | ClassificationScores, predicted: list[int], truth: list[int]) -> None:
        if isinstance(scores, EntityScores):
            scores.add([[self._labels[tag] for tag in predicted]], [[self._labels[tag] for tag in truth]])
        else:
            scores.add(np.array(predicted, dtype=np.int64), np.array(truth, dtype=np.int64))


def _scores_of(labels: Sequence[str]) -> EntityScores | ClassificationScores:
    try:
        entities(labels)
    except ValueError:
        return ClassificationScores(labels)
    return EntityScores()


def _joined(pieces: Iterable[_Tagged]) -> Iterable[tuple[list[int], list[int]]]:
    """Predicted and true classes of each row, its pieces put together."""
    for _, own in itertools.groupby(sorted(pieces), key=lambda piece: piece.words.row):
        group = list(own)
        yield (
            list(itertools.chain.from_iterable(piece.predicted for piece in group)),
            list(itertools.chain.from_iterable(piece.truth for piece in group)),
        )


class TokenClassificationRows:
    """`Rows` of words; a row that is too long is cut between words."""

    part = LOSS

    def __init__(self, table: RowTable, frame: PairIds, *, context: int) -> None:
        self.table, self._frame, self._context = table, frame, context
        tokens = table.lengths("input_ids")
        self._words = table.lengths("tags")
        room = context - _FRAME_TOKENS
        cuts = {row: self._cut(row, int(tokens[row]), room) for row in np.flatnonzero(tokens > room).tolist()}
        self.pieces = cut_rows(self._words, tokens + _FRAME_TOKENS, cuts, one_target=False)

    def collate(self, numbers: Indices) -> Batch:
        """As Rows: `targets` [B, T] at the first tokens of words. `Batch.rows` are `Words`."""
        places = [self._words_of(number) for number in numbers.tolist()]
        parts = [self._part(words) for words in places]
        tensors = framed([(ids, None) for ids, _, _ in parts], self._frame, context=self._context)
        targets_BT = torch.full_like(tensors[IDS], IGNORED_TARGET)
        for i, (_, starts, tags) in enumerate(parts):
            targets_BT[i, torch.from_numpy(starts + 1)] = torch.from_numpy(tags)
        tensors[TARGETS] = targets_BT
        counts = {LOSS: int(self.pieces.targets[numbers].sum())}
        return Batch(tensors, counts, int(self.pieces.lengths[numbers].sum()), places)

    def _words_of(self, number: int) -> Words:
        row = int(self.pieces.rows[number])
        return Words(row, int(self.pieces.firsts[number]), int(self.pieces.ends[number]), int(self._words[row]))

    def _part(self, words: Words) -> tuple[Any, Any, Any]:
        """Token ids of the words, the first token of each, their tags."""
        ids, starts = self.table.row("input_ids", words.row), self.table.row("word_starts", words.row).astype(np.int64)
        first = int(starts[words.first])
        end = int(starts[words.end]) if words.end < words.total else len(ids)
        tags = self.table.row("tags", words.row)[words.first : words.end].astype(np.int64)
        return ids[first:end][: self._context - _FRAME_TOKENS], starts[words.first : words.end] - first, tags

    def _cut(self, row: int, tokens: int, room: int) -> list[tuple[int, int, int]]:
        starts = self.table.row("word_starts", row).tolist()
        borders = [*starts, tokens]
        return [
            (first, end, min(borders[end] - borders[first], room) + _FRAME_TOKENS)
            for first, end in word_windows(starts, tokens, room_tokens=room)
        ]
