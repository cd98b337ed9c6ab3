"""What follows a failure: never more retries than the budget, never the same three times."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.job_train import Retries
from orchestrator.train.guarding.guard import RollbackError
from orchestrator.train.recovery.failures import Failure, FailureClass
from orchestrator.train.recovery.retries import Decision, Failed, decide

AT_ONCE = {
    FailureClass.FENCED,
    FailureClass.NUMERICAL,
    FailureClass.BAD_DATA,
    FailureClass.USER_MISTAKE,
}
RETRIED = [kind for kind in FailureClass if kind not in AT_ONCE]
kinds = st.sampled_from(list(FailureClass))
failures = st.builds(Failure, kinds, st.sampled_from(["a", "b", "c", "d"]), st.just("fix"))
histories = st.lists(st.tuples(failures, st.integers(0, 2)), min_size=1, max_size=25)


def failed(kind: FailureClass, step: int = 4, cause: str = "a", *, retriable: bool = True) -> Failed:
    return Failed(Failure(kind, cause, "fix", retriable=retriable), step)


def followed(history: list[Failed], budgets: Retries) -> list[Decision]:
    """The decisions up to the first that stops, as a driver makes them."""
    made: list[Decision] = []
    for length in range(1, len(history) + 1):
        made.append(decide(history[:length], budgets))
        if made[-1].action == "stop":
            break
    return made


@given(histories, st.integers(0, 4))
def test_never_more_retries_than_the_budget(drawn: list[tuple[Failure, int]], budget: int) -> None:
    """Of a class without progress, over histories in which the last good step rises as drawn."""
    steps = [sum(rise for _, rise in drawn[: i + 1]) for i in range(len(drawn))]
    history = [Failed(failure, step) for (failure, _), step in zip(drawn, steps, strict=True)]
    budgets = Retries(**dict.fromkeys(Retries.model_fields, budget))
    made = followed(history, budgets)
    for step in set(steps):
        for kind in FailureClass:
            tried = [d for d, f in zip(made, history, strict=False) if (f.step, f.failure.kind) == (step, kind)]
            assert sum(d.action != "stop" for d in tried) <= (0 if kind in AT_ONCE else budget)


@given(st.sampled_from(RETRIED), st.integers(0, 50), st.integers(0, 5))
def test_the_same_three_times_at_one_step_stops(kind: FailureClass, step: int, before: int) -> None:
    unlimited = Retries(**dict.fromkeys(Retries.model_fields, "unlimited"))
    earlier = [failed(kind, step, cause=f"other {i}") for i in range(before)]
    made = followed([*earlier, *(failed(kind, step) for _ in range(3))], unlimited)
    assert [d.action == "stop" for d in made[:-1]] == [False] * (before + 2)
    of_the_cluster = kind in (FailureClass.PREEMPTION, FailureClass.CONTROL_PLANE)
    assert (made[-1].action == "stop") is not of_the_cluster


def test_the_same_with_another_between_goes_on() -> None:
    causes = ["a", "a", "b", "a", "a"]
    unlimited = Retries(worker="unlimited")
    assert decide([failed(FailureClass.WORKER, cause=c) for c in causes], unlimited).action == "retry"
    apart = [failed(FailureClass.WORKER, step) for step in (4, 4, 8)]
    assert decide(apart, unlimited).action == "retry"


def test_progress_gives_the_budget_anew() -> None:
    worker = [failed(FailureClass.WORKER, 4, cause=str(i)) for i in range(4)]
    assert [decide(worker[: i + 1], Retries()).action for i in range(4)] == ["retry"] * 3 + ["stop"]
    assert decide([*worker[:3], failed(FailureClass.WORKER, 8)], Retries()).why == "retry 1 of 3"
    back = [*worker[:3], failed(FailureClass.WORKER, 0, cause="b")]  # a checkpoint was passed over: no progress
    assert decide(back, Retries()).action == "stop"


@pytest.mark.parametrize("kind", sorted(AT_ONCE))
def test_what_would_only_come_again_stops_at_once(kind: FailureClass) -> None:
    assert decide([failed(kind)], Retries()).action == "stop"


def test_memory_that_runs_out_goes_on_smaller_while_it_can() -> None:
    assert decide([failed(FailureClass.OUT_OF_MEMORY)], Retries()).action == "retry-smaller"
    assert decide([failed(FailureClass.OUT_OF_MEMORY, retriable=False)], Retries()).action == "stop"


@pytest.mark.parametrize("kind", [FailureClass.STORAGE, FailureClass.CONTROL_PLANE])
def test_what_needs_time_is_waited_for_within_bounds(kind: FailureClass) -> None:
    unlimited = Retries(storage="unlimited", control_plane="unlimited")
    history = [failed(kind, cause=str(i)) for i in range(2000)]
    waits = [decide(history[: i + 1], unlimited).after_s for i in (0, 1, 2, 9, 1999)]
    assert waits == [2.0, 4.0, 8.0, 60.0, 60.0]


@pytest.mark.parametrize("kind", [k for k in RETRIED if k not in (FailureClass.STORAGE, FailureClass.CONTROL_PLANE)])
def test_all_else_is_retried_at_once(kind: FailureClass) -> None:
    assert decide([failed(kind)], Retries()).after_s == 0


def rolled_back(step: int, cause: str) -> Failed:
    return Failed(Failure(FailureClass.NUMERICAL, cause, "fix", RollbackError(cause, step=step + 1)), step)


def test_a_rollback_follows_as_often_as_the_guard_asks_for_it() -> None:
    none = Retries(**dict.fromkeys(Retries.model_fields, 0))
    history = [rolled_back(4, f"its samples are {number}") for number in range(20)]
    assert {decide(history[: i + 1], none).action for i in range(20)} == {"rollback"}


def test_a_rollback_that_changes_nothing_stops() -> None:
    assert [decide([rolled_back(4, "a")] * count, Retries()).action for count in (1, 2, 3)] == [
        "rollback",
        "rollback",
        "stop",
    ]
