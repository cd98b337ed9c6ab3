"""Answers as text: exact match and F1 over words (SQuAD, Rajpurkar et al. 2016 and 2018). Pure."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence

from orchestrator.objectives.scores.result import Scores, State, Table, require_same_length, require_scored

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(answer: str) -> str:
    """In lower case, without ASCII punctuation and English articles, words parted by one space."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_NO_PUNCTUATION)).split())


def word_f1(answer: str, gold: str) -> float:
    """F1 of the words that two answers share, each counted as often as it stands in both.

    If one has no words left, 1 if the other has none either, else 0.
    """
    given, wanted = normalised(answer).split(), normalised(gold).split()
    if not given or not wanted:
        return float(given == wanted)
    return 2 * (Counter(given) & Counter(wanted)).total() / (len(given) + len(wanted))


class AnswerScores:
    """Exact match and F1 of each question: the best over its gold answers.

    A question without gold answers cannot be answered (SQuAD 2): only the empty prediction is right.
    """

    def __init__(self) -> None:
        self._questions: list[tuple[bool, bool, float]] = []

    def add(self, predicted: Sequence[str], golds: Sequence[Sequence[str]]) -> None:
        """For each question its predicted text, "" for no answer, and the texts of its gold answers."""
        require_same_length(len(predicted), len(golds), "predictions and questions")
        for answer, given in zip(predicted, golds, strict=True):
            wanted = [gold for gold in given if normalised(gold)] or [""]
            exact = any(normalised(answer) == normalised(gold) for gold in wanted)
            self._questions.append((bool(given), exact, max(word_f1(answer, gold) for gold in wanted)))

    def state(self) -> State:
        """As Accumulator."""
        return {"questions": list(self._questions)}

    def merge(self, states: Iterable[State]) -> None:
        """As Accumulator."""
        for state in states:
            self._questions += state["questions"]

    def result(self) -> Scores:
        """`exact_match` and `f1`, shares of 1; the table `questions` parts those with an answer from those without."""
        require_scored(len(self._questions), "questions")
        exact, f1 = _means(self._questions)
        rows = []
        for kind, answerable in (("with an answer", True), ("without an answer", False)):
            if part := [question for question in self._questions if question[0] == answerable]:
                rows.append((kind, *_means(part), len(part)))
        table = Table(("questions", "exact_match", "f1", "support"), tuple(rows))
        return Scores({"exact_match": exact, "f1": f1}, {"questions": table})


def _means(questions: list[tuple[bool, bool, float]]) -> tuple[float, float]:
    """Exact match and F1. The sum is rounded once, so it is the same in any order of the questions."""
    count = len(questions)
    return sum(exact for _, exact, _ in questions) / count, math.fsum(f1 for _, _, f1 in questions) / count
