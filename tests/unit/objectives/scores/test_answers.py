"""Exact match and F1 of answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.objectives.scores.answers import AnswerScores, normalised, word_f1

words = st.text(alphabet="ab the,.", max_size=12)


@pytest.mark.parametrize(
    ("answer", "plain"),
    [
        ("The Broncos!", "broncos"),
        ("  an  apple,\ta day ", "apple day"),
        ("theatre", "theatre"),
        ("U.S.A.", "usa"),
        ("the-end", "theend"),
        ("A", ""),
        ("Étude “n°1”", "étude “n°1”"),
    ],
)
def test_normalisation(answer: str, plain: str) -> None:
    assert normalised(answer) == plain


@pytest.mark.parametrize(
    ("answer", "gold", "f1"),
    [
        ("in the year 1066", "1066", 0.5),
        ("Denver Broncos", "the Denver Broncos", 1.0),
        ("b b c", "b b b", 2 / 3),
        ("cat", "dog", 0.0),
        ("", "dog", 0.0),
        ("the", "", 1.0),
    ],
)
def test_f1_by_hand(answer: str, gold: str, f1: float) -> None:
    assert word_f1(answer, gold) == pytest.approx(f1)


@given(words, words)
def test_f1_is_symmetric_and_1_for_equal_words_only(first: str, second: str) -> None:
    assert word_f1(first, second) == word_f1(second, first)
    assert (word_f1(first, second) == 1.0) == (sorted(normalised(first).split()) == sorted(normalised(second).split()))


def test_the_best_gold_answer_counts_and_no_answer_is_one() -> None:
    scores = AnswerScores()
    scores.add(
        ["The Broncos", "Denver team", "", "Paris", ""],
        [["Denver", "Broncos"], ["the Denver Broncos", "Denver"], [], [], ["Rome"]],
    )
    result = scores.result()
    assert result.metrics == pytest.approx({"exact_match": 2 / 5, "f1": (1 + 2 / 3 + 1 + 0 + 0) / 5})
    table = result.tables["questions"]
    assert table.columns == ("questions", "exact_match", "f1", "support")
    assert [row[0] for row in table.rows] == ["with an answer", "without an answer"]
    assert [row[1:] for row in table.rows] == [pytest.approx((1 / 3, 5 / 9, 3)), (0.5, 0.5, 2)]


def test_a_gold_answer_without_words_counts_only_if_there_is_no_other() -> None:
    scores = AnswerScores()
    scores.add(["", "", "A"], [["the", "cat"], ["the"], ["a"]])
    assert scores.result().metrics["exact_match"] == pytest.approx(2 / 3)
    assert [row[0] for row in scores.result().tables["questions"].rows] == ["with an answer"]


@given(st.lists(st.tuples(words, st.lists(words, max_size=3)), min_size=1, max_size=12), st.integers(1, 4))
def test_any_number_of_ranks_gives_the_same_scores(questions: list[tuple[str, list[str]]], num_ranks: int) -> None:
    def added(part: list[tuple[str, list[str]]]) -> AnswerScores:
        scores = AnswerScores()
        scores.add([answer for answer, _ in part], [golds for _, golds in part])
        return scores

    together = AnswerScores()
    together.merge(added(questions[rank::num_ranks]).state() for rank in range(num_ranks))
    assert together.result() == added(questions).result()


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="predictions and questions must be as many"):
        AnswerScores().add(["Rome"], [])
    with pytest.raises(ValueError, match="no questions to score"):
        AnswerScores().result()
