"""The interval between checkpoints is the best one: no other wastes less."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.checkpoint.interval import FIRST_FAILURE_S, SHORTEST_S, Pacer, best_interval_s, pacer_of


def wasted(interval_s: float, cost_s: float, between_s: float) -> float:
    """Share of the wall time beyond the useful, where failures come at random and a restart is free (Daly 2006)."""
    return between_s * math.expm1((interval_s + cost_s) / between_s) / interval_s


@given(st.floats(1e-3, 100.0), st.floats(600.0, 1e6))
def test_no_other_interval_wastes_less(cost_s: float, between_s: float) -> None:
    best_s = best_interval_s(cost_s, between_s)
    least = wasted(best_s, cost_s, between_s)
    for factor in (0.5, 0.8, 1.25, 2.0):
        assert wasted(best_s * factor, cost_s, between_s) > least * (1 - 1e-9)


def test_where_a_checkpoint_costs_more_than_failures_leave_it_is_as_rare_as_they_are() -> None:
    assert best_interval_s(300.0, 100.0) == 100.0


def test_a_fixed_interval_counts_from_the_last_checkpoint() -> None:
    pacer = Pacer(60.0, began_at=1000.0)
    assert [pacer.is_due(at) for at in (1059.0, 1060.0)] == [False, True]
    pacer.begins(1061.0)
    assert [pacer.is_due(at) for at in (1120.0, 1121.0)] == [False, True]


def test_auto_follows_cost_and_failures() -> None:
    calm = Pacer("auto", began_at=0.0, costs_s=[0.1, 0.1, 9.0])
    assert calm.interval_s(0.0) == pytest.approx(math.sqrt(2 * 0.1 * FIRST_FAILURE_S), rel=0.01)
    assert Pacer("auto", began_at=0.0, costs_s=[0.4]).interval_s(0.0) > 1.9 * calm.interval_s(0.0)
    shaky = Pacer("auto", began_at=0.0, costs_s=[0.1], failures=99)
    assert shaky.interval_s(0.0) == pytest.approx(calm.interval_s(0.0) / 10, rel=0.02)
    assert Pacer("auto", began_at=0.0, costs_s=[1e-6]).interval_s(0.0) == SHORTEST_S
    assert Pacer("auto", began_at=0.0, costs_s=[1e-6], written_in_s=40.0).interval_s(0.0) == 80.0


def test_it_begins_with_what_the_run_has_seen() -> None:
    def event(second: int, name: str, **more: float) -> dict[str, object]:
        return {"time": f"2026-01-01T00:00:{second:02d}.000+00:00", "event": name, **more}

    told = [
        event(0, "started"),
        event(5, "checkpoint", seconds=0.2, written_in_s=3.0),
        event(10, "failed"),
        event(11, "ended"),
        event(20, "resumed"),
        event(50, "ended"),
    ]
    pacer = pacer_of("auto", told, now=7.0)
    assert (pacer.failures, pacer.before_s, pacer.costs_s, pacer.written_in_s) == (1, 40.0, [0.2], 3.0)
