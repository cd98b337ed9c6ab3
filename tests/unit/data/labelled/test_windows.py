"""Windows: every answer that can fit is whole in one, every word is in exactly one, pairs fit."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.labelled.windows import Window, context_windows, question_room, truncate_pair, word_windows


@given(st.data(), st.integers(1, 300), st.integers(1, 60), st.integers(0, 80))
def test_every_answer_that_can_fit_is_whole_in_a_window(
    data: st.DataObject, context: int, room: int, overlap: int
) -> None:
    firsts = data.draw(st.lists(st.integers(0, context - 1), max_size=5))
    answers = [(first, data.draw(st.integers(first, context - 1))) for first in firsts]
    windows = context_windows(context, room_tokens=room, overlap_tokens=overlap, answers=answers)
    assert all(0 <= w.first < w.end <= context and w.end - w.first <= room for w in windows)
    assert {t for w in windows for t in range(w.first, w.end)} == set(range(context))
    for first, last in answers:
        holding = [w for w in windows if w.holds((first, last))]
        assert bool(holding) == (last - first < room)
        for window in holding:
            a, b = window.inside((first, last))
            assert (window.first + a, window.first + b) == (first, last)


def test_windows_overlap_as_asked() -> None:
    assert context_windows(10, room_tokens=4, overlap_tokens=1) == [Window(0, 4), Window(3, 7), Window(6, 10)]
    assert context_windows(4, room_tokens=4, overlap_tokens=3) == [Window(0, 4)]
    assert context_windows(0, room_tokens=4, overlap_tokens=3) == [Window(0, 0)]
    assert context_windows(9, room_tokens=4, overlap_tokens=0, answers=[(3, 5)])[-1] == Window(3, 7)


@pytest.mark.parametrize(("question", "kept"), [(5, 5), (50, 48), (48, 48), (0, 0)])
def test_a_long_question_leaves_half(question: int, kept: int) -> None:
    assert question_room(question, max_tokens=100) == kept


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 60))
def test_pairs_lose_the_longer_first(first: int, second: int, room: int) -> None:
    a, b = first, second
    while a + b > room:  # one token at a time off the longer, the second where both are alike
        if a > b:
            a -= 1
        else:
            b -= 1
    kept = truncate_pair(first, second, room_tokens=room)
    assert sum(kept) == min(room, first + second)
    assert kept[0] <= first
    assert kept[1] <= second
    assert sorted(kept) == sorted((a, b))


@given(st.lists(st.integers(1, 9), max_size=40), st.integers(1, 20))
def test_words_stay_whole(lengths: list[int], room: int) -> None:
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    windows = word_windows(starts, sum(lengths), room_tokens=room)
    assert [w for first, end in windows for w in range(first, end)] == list(range(len(lengths)))
    for first, end in windows:
        assert first < end
        assert sum(lengths[first:end]) <= room or end - first == 1
    for (first, end), _ in itertools.pairwise(windows):
        assert sum(lengths[first : end + 1]) > room  # the next word would not have fitted
