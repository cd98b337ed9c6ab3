"""The span that answers, against all spans tried one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.objectives.scores.spans import OUTSIDE, ScoredSpan, best_spans, choose_span

# [CLS] question [SEP] context [SEP] padding: two windows over a context of 5 tokens, 2 of them shared.
CONTEXT_WT = np.array([[-1, -1, -1, 0, 1, 2, 3, -1], [-1, -1, -1, 2, 3, 4, -1, -1]])


def logits(**at: float) -> np.ndarray:
    """0 everywhere but at `w1t4=...`."""
    grid_WT = np.zeros((2, 8), dtype=np.float32)
    for place, value in at.items():
        grid_WT[int(place[1]), int(place[3])] = value
    return grid_WT


def test_the_highest_valid_span_wins_over_question_and_padding() -> None:
    start, end = logits(w0t1=9, w1t4=5, w0t6=4), logits(w0t2=9, w1t7=9, w1t5=3, w0t4=7)
    assert choose_span(start, end, CONTEXT_WT, max_answer_tokens=3) == ScoredSpan(3, 4, 8.0)


def test_an_end_before_its_start_and_a_span_too_long_are_no_answers() -> None:
    start, end = logits(w0t6=5, w0t3=4), logits(w0t3=5, w0t6=3)
    assert choose_span(start, end, CONTEXT_WT, max_answer_tokens=4) == ScoredSpan(0, 0, 9.0)
    start, end = logits(w0t3=4), logits(w0t6=3)
    assert choose_span(start, end, CONTEXT_WT, max_answer_tokens=4) == ScoredSpan(0, 3, 7.0)
    assert choose_span(start, end, CONTEXT_WT, max_answer_tokens=3) == ScoredSpan(0, 0, 4.0)


def test_no_answer_is_the_lowest_cls_of_all_windows() -> None:
    start, end = logits(w0t0=4, w1t0=1, w1t4=3), logits(w0t0=4, w1t0=1, w1t4=1)
    assert choose_span(start, end, CONTEXT_WT, max_answer_tokens=3, no_answer_margin=0.0) == ScoredSpan(3, 3, 4.0)
    assert choose_span(start, end, CONTEXT_WT, max_answer_tokens=3, no_answer_margin=1.5) == ScoredSpan(3, 3, 4.0)
    assert choose_span(start, end, CONTEXT_WT, max_answer_tokens=3, no_answer_margin=2.0) is None


def test_a_span_in_two_windows_stands_once_with_its_higher_score() -> None:
    start, end = logits(w0t5=2, w1t3=3), logits(w0t5=2, w1t3=3)
    spans = best_spans(start, end, CONTEXT_WT, max_answer_tokens=2, count=50)
    assert spans[0] == ScoredSpan(2, 2, 6.0)
    assert len({(span.first, span.last) for span in spans}) == len(spans) == 5 + 4


def test_without_a_context_there_is_no_span() -> None:
    outside_WT = np.full((1, 4), OUTSIDE)
    assert choose_span(np.zeros((1, 4)), np.zeros((1, 4)), outside_WT, max_answer_tokens=3) is None


def test_logits_that_are_not_finite_are_passed_over() -> None:
    start, end = logits(w0t3=math.nan, w0t4=-math.inf, w1t5=1), logits(w0t4=math.inf)
    assert choose_span(start, end, CONTEXT_WT, max_answer_tokens=3) == ScoredSpan(4, 4, 1.0)
    broken = np.full((2, 8), np.nan)
    assert best_spans(broken, broken, CONTEXT_WT, max_answer_tokens=3, count=2) == []


def tried_one_by_one(start_WT: np.ndarray, end_WT: np.ndarray, limit: int) -> list[ScoredSpan]:
    best: dict[tuple[int, int], float] = {}
    for w, t in zip(*np.nonzero(CONTEXT_WT >= 0), strict=True):
        for e in range(t, min(t + limit, CONTEXT_WT.shape[1])):
            if CONTEXT_WT[w, e] >= 0:
                span = (int(CONTEXT_WT[w, t]), int(CONTEXT_WT[w, e]))
                best[span] = max(best.get(span, -math.inf), float(start_WT[w, t]) + float(end_WT[w, e]))
    return sorted((ScoredSpan(*span, score) for span, score in best.items()), key=lambda s: (-s.score, s.first, s.last))


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 16), st.sampled_from([np.float16, np.float32]))
def test_it_agrees_with_trying_all(seed: int, limit: int, count: int, dtype: type) -> None:
    rng = np.random.default_rng(seed)
    start_WT, end_WT = rng.integers(-2, 3, (2, 2, 8)).astype(dtype)  # few values, so many ties
    spans = best_spans(start_WT, end_WT, CONTEXT_WT, max_answer_tokens=limit, count=count)
    assert spans == tried_one_by_one(start_WT, end_WT, limit)[:count]


def test_bad_input_is_named() -> None:
    grid = np.zeros((2, 8))
    with pytest.raises(ValueError, match=r"one shape \[windows, positions\]"):
        choose_span(grid, grid[:1], CONTEXT_WT, max_answer_tokens=3)
    with pytest.raises(ValueError, match="max_answer_tokens is 0: it must be at least 1"):
        choose_span(grid, grid, CONTEXT_WT, max_answer_tokens=0)
