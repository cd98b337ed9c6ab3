"""Names of checkpoints, when one is due, and which are given up."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.checkpoint.layout import Progress, is_due, step_folder, step_of, to_delete


@pytest.mark.parametrize(
    ("steps", "keep_last", "gone"),
    [
        ([], 2, []),
        ([10], 2, []),
        ([10, 20], 2, []),
        ([10, 20, 30], 2, [10]),
        ([30, 10, 20], 1, [10, 20]),
        ([10, 20, 30, 40, 50], 3, [10, 20]),
        ([0, 1], 1, [0]),
    ],
)
def test_the_oldest_are_given_up(steps: list[int], keep_last: int, gone: list[int]) -> None:
    assert to_delete(steps, keep_last=keep_last) == gone


@given(st.sets(st.integers(0, 10**7)), st.integers(1, 9))
def test_the_newest_are_kept_and_never_fewer_than_asked(steps: set[int], keep_last: int) -> None:
    kept = steps - set(to_delete(steps, keep_last=keep_last))
    assert len(kept) == min(keep_last, len(steps))
    assert sorted(steps)[-keep_last:] == sorted(kept)


@given(st.sets(st.integers(0, 10**5)), st.integers(1, 5), st.integers(1, 1000), st.integers(0, 10**5))
def test_the_best_and_every_so_many_steps_stay(steps: set[int], keep_last: int, every: int, best: int) -> None:
    gone = to_delete(steps, keep_last=keep_last, keep_every=every, best_step=best)
    plain = to_delete(steps, keep_last=keep_last)
    assert gone == [step for step in plain if step % every and step != best]


@pytest.mark.parametrize(
    ("step", "last", "every", "due"),
    [
        (50, 120, 50, True),
        (51, 120, 50, False),
        (100, 120, 50, True),
        (120, 120, 50, True),
        (119, 120, None, False),
        (120, 120, None, True),
        (1, 1, 100, True),
        (1, 5, 1, True),
    ],
)
def test_something_is_due_every_so_many_steps_and_at_the_last(
    step: int, last: int, every: int | None, due: bool
) -> None:
    assert is_due(step, last=last, every=every) is due


@given(st.integers(0, 99_999_999))
def test_a_folder_tells_its_step_and_sorts_by_it(step: int) -> None:
    name = step_folder(Path("x"), step).name
    assert step_of(name) == step
    assert name <= step_folder(Path("x"), 99_999_999).name


@pytest.mark.parametrize("name", ["step-1", "step-00000001.tmp-ab12", "Step-00000001", "step-0000000a", "latest", ""])
def test_other_names_are_no_steps(name: str) -> None:
    assert step_of(name) is None


def test_progress_is_closed_and_comes_back() -> None:
    progress = Progress(step=3, samples=12, tokens=192, train_loss=2.5)
    assert Progress.model_validate_json(progress.model_dump_json()) == progress
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Progress.model_validate({"step": 3, "epoch": 1})
