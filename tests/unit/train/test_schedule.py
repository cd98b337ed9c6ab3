"""The learning rate: up to its peak, then down to its end, and nowhere else."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.job import Schedule
from orchestrator.train.schedule import learning_rate

PEAK = 0.004


@st.composite
def schedules(draw: st.DrawFn, name: str | None = None) -> tuple[int, Schedule]:
    """Steps, and a schedule that fits them."""
    steps = draw(st.integers(1, 300))
    kind = name or draw(st.sampled_from(["cosine", "constant"]))
    final = draw(st.floats(0, 1))
    warmup = draw(st.integers(0, steps))
    return steps, Schedule(name=kind, warmup_steps=warmup, final_fraction=final)  # type: ignore[arg-type]


def rates(steps: int, schedule: Schedule) -> list[float]:
    return [learning_rate(step, peak=PEAK, steps=steps, schedule=schedule) for step in range(1, steps + 1)]


@given(schedules())
def test_it_is_positive_until_its_end_and_never_above_the_peak(case: tuple[int, Schedule]) -> None:
    found = rates(*case)
    assert all(0 < rate <= PEAK * (1 + 1e-12) for rate in found[:-1])
    assert 0 <= found[-1] <= PEAK * (1 + 1e-12)


@given(schedules())
def test_the_warm_up_climbs_in_equal_steps_to_the_peak(case: tuple[int, Schedule]) -> None:
    steps, schedule = case
    climb = rates(steps, schedule)[: schedule.warmup_steps]
    assert climb == pytest.approx([PEAK * (i + 1) / schedule.warmup_steps for i in range(schedule.warmup_steps)])


@given(schedules("cosine"))
def test_a_cosine_falls_to_its_final_fraction(case: tuple[int, Schedule]) -> None:
    steps, schedule = case
    fall = rates(steps, schedule)[max(0, schedule.warmup_steps - 1) :]
    assert all(later <= earlier + 1e-15 for earlier, later in itertools.pairwise(fall))
    if steps > schedule.warmup_steps:
        assert fall[-1] == pytest.approx(PEAK * schedule.final_fraction, abs=1e-12)


@given(schedules("constant"))
def test_a_constant_stays_at_the_peak(case: tuple[int, Schedule]) -> None:
    steps, schedule = case
    assert set(rates(steps, schedule)[schedule.warmup_steps :]) <= {PEAK}


def test_these_are_the_numbers() -> None:
    schedule = Schedule(warmup_steps=2, final_fraction=0.5)
    expected = [0.5, 1.0, 0.5 + 0.25 * (1 + 2**-0.5), 0.75, 0.5 + 0.25 * (1 - 2**-0.5), 0.5]
    assert rates(6, schedule) == pytest.approx([PEAK * share for share in expected])


def test_a_run_shorter_than_its_warm_up_ends_on_the_way_up() -> None:
    assert rates(3, Schedule(warmup_steps=6)) == pytest.approx([PEAK / 6, PEAK / 3, PEAK / 2])
