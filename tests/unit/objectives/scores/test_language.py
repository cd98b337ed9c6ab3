"""Loss, perplexity, bits per byte, and the two tasks of BERT."""

from __future__ import annotations

import math
import pickle
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.objectives.scores.language import LanguageScores, MaskedLanguageScores, language_scores, perplexity

rows = st.lists(st.tuples(st.floats(0, 1e4), st.integers(1, 500), st.integers(1, 2000)), min_size=1, max_size=12)


def test_a_uniform_guess_over_256_bytes_costs_8_bits() -> None:
    scores = LanguageScores()
    scores.add(nats=[300 * math.log(256), 700 * math.log(256)], tokens=[300, 700], text_bytes=[300, 700])
    assert scores.result().metrics == pytest.approx({"loss": math.log(256), "perplexity": 256, "bits_per_byte": 8})


def test_bits_per_byte_do_not_depend_on_the_length_of_a_token() -> None:
    long_tokens = language_scores(1000 * math.log(2), 250, text_bytes=1000)
    assert long_tokens.metrics["bits_per_byte"] == pytest.approx(1.0)
    assert long_tokens.metrics["loss"] == pytest.approx(4 * math.log(2))


def test_bytes_missing_once_leave_bits_per_byte_out() -> None:
    known, unknown, idle = LanguageScores(), LanguageScores(), LanguageScores()
    known.add(2.0, 1, 4)
    unknown.add(2.0, 1)
    known.merge([idle.state()])
    assert "bits_per_byte" in known.result().metrics
    known.merge([unknown.state()])
    assert known.result().metrics == pytest.approx({"loss": 2.0, "perplexity": math.exp(2.0)})


@pytest.mark.parametrize("loss", [700.0, 1e4, math.inf])
def test_a_huge_loss_does_not_overflow(loss: float) -> None:
    assert perplexity(loss) == math.exp(700) < math.inf


def test_a_loss_that_is_no_number_stays_none() -> None:
    assert math.isnan(language_scores(math.nan, 5).metrics["perplexity"])


@given(rows, st.integers(1, 5), st.randoms(use_true_random=False))
def test_any_number_of_ranks_gives_the_same_scores(
    rows: list[tuple[float, int, int]], num_ranks: int, random: Random
) -> None:
    alone = LanguageScores()
    alone.add(*np.array(rows).T)
    ranks = [LanguageScores() for _ in range(num_ranks)]
    for i, row in enumerate(rows):
        ranks[i % num_ranks].add(*row)
    states = [pickle.loads(pickle.dumps(rank.state())) for rank in ranks]
    together = LanguageScores()
    together.merge(random.sample(states, num_ranks))
    assert together.result() == alone.result()


def test_masked_tokens_and_pairs_of_sentences() -> None:
    ranks = [MaskedLanguageScores(), MaskedLanguageScores(), MaskedLanguageScores()]
    ranks[0].add([3.0, 5.0], [2, 4], [1, 2])
    ranks[0].add_pairs(0.5, 1, 1)
    ranks[1].add(2.0, 4, np.array([True, False, False, True]))
    ranks[1].add_pairs([0.25, 2.25], [1, 2], [1, 0])
    together = MaskedLanguageScores()
    together.merge(rank.state() for rank in ranks)
    assert together.result().metrics == pytest.approx(
        {
            "loss": 1.75,
            "perplexity": math.e,
            "masked_loss": 1.0,
            "masked_accuracy": 0.5,
            "next_sentence_loss": 0.75,
            "next_sentence_accuracy": 0.5,
        }
    )


def test_without_pairs_there_are_no_scores_of_them() -> None:
    scores = MaskedLanguageScores()
    scores.add(4.0, 2, 1)
    assert scores.result().metrics == pytest.approx(
        {"loss": 2.0, "perplexity": math.exp(2), "masked_loss": 2.0, "masked_accuracy": 0.5}
    )


@pytest.mark.parametrize("scores", [LanguageScores(), MaskedLanguageScores()])
def test_nothing_to_score_is_an_error(scores: LanguageScores | MaskedLanguageScores) -> None:
    with pytest.raises(ValueError, match="tokens to score"):
        scores.result()
