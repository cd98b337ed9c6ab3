"""Every metric has a direction, and only metrics have one."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.objectives.scores.answers import AnswerScores
from orchestrator.objectives.scores.classification import ClassificationScores
from orchestrator.objectives.scores.direction import DIRECTIONS, direction_of
from orchestrator.objectives.scores.entities import EntityScores
from orchestrator.objectives.scores.language import LanguageScores, MaskedLanguageScores
from orchestrator.objectives.scores.preference import PreferenceScores
from orchestrator.objectives.scores.result import Accumulator


def one_of_each() -> list[Accumulator]:
    language, masked, preference = LanguageScores(), MaskedLanguageScores(), PreferenceScores()
    language.add(1.0, 1, 1)
    masked.add(1.0, 1, 1)
    masked.add_pairs(1.0, 1, 1)
    preference.add(1.0, 0.0)
    classes, entities, answers = ClassificationScores(["a"]), EntityScores(), AnswerScores()
    classes.add(np.array([0]), np.array([0]))
    entities.add([["O"]], [["O"]])
    answers.add([""], [[]])
    return [language, masked, preference, classes, entities, answers]


def test_the_table_holds_what_scores_have_and_nothing_else() -> None:
    assert {name for scores in one_of_each() for name in scores.result().metrics} == set(DIRECTIONS)


@pytest.mark.parametrize("metric", ["loss", "perplexity", "bits_per_byte", "masked_loss", "next_sentence_loss"])
def test_less_of_a_loss_is_better(metric: str) -> None:
    assert direction_of(metric) == "min"


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "f1", "exact_match", "reward_margin"])
def test_more_of_the_others_is_better(metric: str) -> None:
    assert direction_of(metric) == "max"


def test_an_unknown_metric_is_named_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r"no metric 'acuracy'; there are accuracy, bits_per_byte, .*token_accuracy"):
        direction_of("acuracy")
