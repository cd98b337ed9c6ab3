"""Scores of classes against a table by hand and against counting row by row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.objectives.scores.classification import ClassificationScores

LABELS = ("bad", "fair", "good", "unseen")
classes = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30)


def scored(predicted: list[int], truth: list[int], labels: tuple[str, ...] = LABELS) -> ClassificationScores:
    scores = ClassificationScores(labels)
    scores.add(np.array(predicted), np.array(truth))
    return scores


def test_a_table_by_hand() -> None:
    result = scored(truth=[0, 0, 0, 0, 1, 1, 2, 2, 2, 2], predicted=[0, 0, 0, 1, 1, 0, 2, 2, 1, 0]).result()
    assert result.metrics == pytest.approx({"accuracy": 0.6, "macro_f1": (2 / 3 + 0.4 + 2 / 3) / 3})
    assert result.tables["confusion"].to_json() == {
        "columns": ["truth", "bad", "fair", "good", "unseen"],
        "rows": [["bad", 3, 1, 0, 0], ["fair", 1, 1, 0, 0], ["good", 1, 1, 2, 0], ["unseen", 0, 0, 0, 0]],
    }
    table = result.tables["classes"].to_json()
    assert table["columns"] == ["label", "precision", "recall", "f1", "support"]
    assert [row[0] for row in table["rows"]] == ["bad", "fair", "good"]
    assert [row[1:] for row in table["rows"]] == [
        pytest.approx([3 / 5, 3 / 4, 2 / 3, 4]),
        pytest.approx([1 / 3, 1 / 2, 2 / 5, 2]),
        pytest.approx([1, 1 / 2, 2 / 3, 4]),
    ]


def test_a_class_that_is_only_predicted_counts_in_the_mean() -> None:
    result = scored(truth=[0, 0, 1], predicted=[0, 3, 1]).result()
    assert result.metrics["macro_f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert result.tables["classes"].rows[-1] == ("unseen", 0.0, 0.0, 0.0, 0)


@given(classes)
def test_it_agrees_with_counting_row_by_row(rows: list[tuple[int, int]]) -> None:
    metrics = scored([p for p, _ in rows], [t for _, t in rows]).result().metrics
    f1 = []
    for c in {c for row in rows for c in row}:
        right = sum(p == t == c for p, t in rows)
        wrong = sum((p == c) != (t == c) for p, t in rows)
        f1.append(2 * right / (2 * right + wrong))
    assert metrics["macro_f1"] == pytest.approx(sum(f1) / len(f1))
    assert metrics["accuracy"] == pytest.approx(sum(p == t for p, t in rows) / len(rows))


@given(classes, st.integers(1, 4))
def test_any_number_of_ranks_gives_the_same_scores(rows: list[tuple[int, int]], num_ranks: int) -> None:
    pairs = np.array(rows, dtype=np.uint8)
    ranks = [ClassificationScores(LABELS) for _ in range(num_ranks)]
    for i, rank in enumerate(ranks):
        rank.add(pairs[i::num_ranks, 0], pairs[i::num_ranks, 1])
    together = ClassificationScores(LABELS)
    together.merge(rank.state() for rank in reversed(ranks))
    assert together.result() == scored([p for p, _ in rows], [t for _, t in rows]).result()


def test_narrow_class_numbers_do_not_overflow() -> None:
    labels = tuple(f"class {i}" for i in range(200))
    scores = ClassificationScores(labels)
    scores.add(np.array([199, 7], dtype=np.uint8), np.array([199, 8], dtype=np.uint8))
    assert scores.result().metrics["accuracy"] == 0.5


def test_a_state_does_not_change_when_more_is_added() -> None:
    scores = scored([0], [0])
    state = scores.state()
    scores.add(np.array([1]), np.array([1]))
    assert state["confusion"].sum() == 1


@pytest.mark.parametrize(
    ("predicted", "truth", "says"),
    [
        ([0, 4], [0, 0], "predicted class 4 has no label: there are 4"),
        ([0, 0], [0, -1], "true class -1 has no label"),
        ([0], [0, 0], "predicted and true classes must be as many as each other: they are 1 and 2"),
    ],
)
def test_bad_rows_are_named(predicted: list[int], truth: list[int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        scored(predicted, truth)


def test_class_numbers_must_be_whole() -> None:
    with pytest.raises(TypeError):
        ClassificationScores(LABELS).add(np.array([0.5]), np.array([0]))


def test_ranks_must_count_the_same_labels() -> None:
    with pytest.raises(ValueError, match="labels of two ranks differ"):
        ClassificationScores(LABELS).merge([ClassificationScores(("bad",)).state()])


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(ValueError, match="no rows to score"):
        ClassificationScores(LABELS).result()
