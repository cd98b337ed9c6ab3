"""One class a row: accuracy, macro F1, scores by class, the confusion matrix. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.objectives.scores.arithmetic import Ints, precision_recall_f1
from orchestrator.objectives.scores.result import Row, Scores, State, Table, require_same_length, require_scored


class ClassificationScores:
    """Counts of (true class, predicted class): a matrix [C, C], so the rows themselves are not kept."""

    def __init__(self, labels: Sequence[str]) -> None:
        """Names of the classes: class i is `labels[i]`."""
        self._labels = tuple(labels)
        self._confusion_CC = np.zeros((len(labels), len(labels)), dtype=np.int64)

    def add(self, predicted_N: npt.NDArray[np.integer[Any]], truth_N: npt.NDArray[np.integer[Any]]) -> None:
        """Class numbers of N rows.

        Raises:
            ValueError: there is a class that has no label, or not as many predictions as truths.
        """
        require_same_length(predicted_N.size, truth_N.size, "predicted and true classes")
        predicted, truth = self._checked(predicted_N, "predicted"), self._checked(truth_N, "true")
        count = len(self._labels)
        self._confusion_CC += np.bincount(truth * count + predicted, minlength=count * count).reshape(count, count)

    def state(self) -> State:
        """As Accumulator."""
        return {"labels": self._labels, "confusion": self._confusion_CC.copy()}

    def merge(self, states: Iterable[State]) -> None:
        """As Accumulator.

        Raises:
            ValueError: a state counts other labels.
        """
        for state in states:
            if state["labels"] != self._labels:
                raise ValueError(f"the labels of two ranks differ: {list(self._labels)} and {list(state['labels'])}")
            self._confusion_CC += state["confusion"]

    def result(self) -> Scores:
        """`accuracy`, `macro_f1`; tables `classes` and `confusion` (a row for each true class).

        Macro F1 is the plain mean over the classes that occur, as truth or as a prediction. The table has these only.
        """
        total = int(self._confusion_CC.sum())
        require_scored(total, "rows")
        correct_C = np.diag(self._confusion_CC)
        predicted_C, truth_C = self._confusion_CC.sum(axis=0), self._confusion_CC.sum(axis=1)
        by_class = precision_recall_f1(correct_C, predicted_C, truth_C)
        occurs = np.flatnonzero(predicted_C + truth_C)
        metrics = {"accuracy": float(correct_C.sum() / total), "macro_f1": float(by_class[2][occurs].mean())}
        rows: tuple[Row, ...] = tuple(
            (self._labels[i], *(float(score[i]) for score in by_class), int(truth_C[i])) for i in occurs
        )
        counts: tuple[Row, ...] = tuple(
            (label, *row) for label, row in zip(self._labels, self._confusion_CC.tolist(), strict=True)
        )
        return Scores(
            metrics,
            {
                "classes": Table(("label", "precision", "recall", "f1", "support"), rows),
                "confusion": Table(("truth", *self._labels), counts),
            },
        )

    def _checked(self, classes_N: npt.NDArray[np.integer[Any]], what: str) -> Ints:
        wide_N = classes_N.reshape(-1).astype(np.int64, casting="same_kind")  # narrow types overflow in truth * count
        outside = wide_N[(wide_N < 0) | (wide_N >= len(self._labels))]
        if len(outside):
            raise ValueError(f"{what} class {outside[0]} has no label: there are {len(self._labels)}, counted from 0")
        return wide_N
