"""The learning rate: up to its peak, then down to its end, and nowhere else."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.job_train import Schedule
from orchestrator.train.schedule import learning_rate

PEAK = 0.004
ENDING = ("cosine", "linear", "wsd")
NAMES = (*ENDING, "constant", "inverse-sqrt")


@st.composite
def schedules(draw: st.DrawFn, *names: str) -> tuple[int, Schedule]:
    """Steps, and a schedule of one of these names that fits them."""
    steps = draw(st.integers(1, 300))
    made = Schedule(
        name=draw(st.sampled_from(names)),  # type: ignore[arg-type]
        warmup_steps=draw(st.integers(0, steps)),
        final_fraction=draw(st.floats(0, 1)),
        decay_steps=draw(st.none() | st.integers(1, 400)),
    )
    return steps, made


def rates(steps: int, schedule: Schedule) -> list[float]:
    return [learning_rate(step, peak=PEAK, steps=steps, schedule=schedule) for step in range(1, steps + 1)]


@given(schedules(*NAMES))
def test_it_is_positive_until_its_end_and_never_above_the_peak(case: tuple[int, Schedule]) -> None:
    found = rates(*case)
    assert all(0 < rate <= PEAK * (1 + 1e-12) for rate in found[:-1])
    assert 0 <= found[-1] <= PEAK * (1 + 1e-12)


@given(schedules(*NAMES))
def test_the_warm_up_climbs_in_equal_steps_to_the_peak(case: tuple[int, Schedule]) -> None:
    steps, schedule = case
    climb = rates(steps, schedule)[: schedule.warmup_steps]
    assert climb == pytest.approx([PEAK * (i + 1) / schedule.warmup_steps for i in range(schedule.warmup_steps)])


@given(schedules(*NAMES))
def test_after_the_warm_up_it_never_climbs(case: tuple[int, Schedule]) -> None:
    steps, schedule = case
    fall = rates(steps, schedule)[max(0, schedule.warmup_steps - 1) :]
    assert all(later <= earlier + 1e-15 for earlier, later in itertools.pairwise(fall))


@given(schedules(*ENDING))
def test_the_last_step_has_the_final_fraction(case: tuple[int, Schedule]) -> None:
    steps, schedule = case
    share = schedule.final_fraction if steps > schedule.warmup_steps else 1.0
    assert rates(steps, schedule)[-1] == pytest.approx(PEAK * share, abs=1e-12)


@given(schedules("cosine", "linear", "inverse-sqrt"))
def test_it_leaves_the_warm_up_without_a_jump(case: tuple[int, Schedule]) -> None:
    # Of 300 times as many steps, the one after the warm-up is next to the peak.
    steps, schedule = 300 * case[0], case[1].model_copy(update={"warmup_steps": max(100, case[1].warmup_steps)})
    after = learning_rate(schedule.warmup_steps + 1, peak=PEAK, steps=steps, schedule=schedule)
    fell = {"cosine": 1e-3, "linear": 1 / (steps - schedule.warmup_steps), "inverse-sqrt": 0.005}[schedule.name]
    assert PEAK * (1 - fell) * (1 - 1e-9) <= after <= PEAK


@given(schedules("wsd"))
def test_wsd_falls_in_equal_steps_over_its_decay_and_nowhere_else(case: tuple[int, Schedule]) -> None:
    steps, schedule = case
    decay = min(steps - schedule.warmup_steps, schedule.decay_steps or max(1, steps // 5))
    found = rates(steps, schedule)
    assert set(found[schedule.warmup_steps : steps - decay]) <= {PEAK}
    fall = [PEAK, *found[steps - decay :]]
    each = PEAK * (1 - schedule.final_fraction) / max(1, decay)
    assert [a - b for a, b in itertools.pairwise(fall)] == pytest.approx([each] * decay, abs=1e-12)


@given(schedules("constant"))
def test_a_constant_stays_at_the_peak(case: tuple[int, Schedule]) -> None:
    steps, schedule = case
    assert set(rates(steps, schedule)[schedule.warmup_steps :]) <= {PEAK}


@pytest.mark.parametrize(
    ("settings", "steps", "shares"),
    [
        (
            {"warmup_steps": 2, "final_fraction": 0.5},
            6,
            [0.5, 1.0, 0.5 + 0.25 * (1 + 2**-0.5), 0.75, 0.5 + 0.25 * (1 - 2**-0.5), 0.5],
        ),
        ({"name": "linear", "warmup_steps": 1, "final_fraction": 0.2}, 5, [1.0, 0.8, 0.6, 0.4, 0.2]),
        (
            {"name": "inverse-sqrt", "warmup_steps": 4},
            16,
            [0.25, 0.5, 0.75, *((4 / step) ** 0.5 for step in range(4, 17))],
        ),
        ({"name": "inverse-sqrt"}, 4, [1.0, 2**-0.5, 3**-0.5, 0.5]),
        ({"name": "wsd", "warmup_steps": 1, "final_fraction": 0.0, "decay_steps": 2}, 5, [1.0, 1.0, 1.0, 0.5, 0.0]),
        ({"name": "wsd", "final_fraction": 0.1}, 10, [1.0] * 8 + [0.55, 0.1]),
        ({"name": "wsd", "warmup_steps": 3, "final_fraction": 0.0, "decay_steps": 9}, 5, [1 / 3, 2 / 3, 1.0, 0.5, 0.0]),
        ({"warmup_steps": 6}, 3, [1 / 6, 1 / 3, 1 / 2]),
    ],
)
def test_these_are_the_numbers(settings: dict[str, object], steps: int, shares: list[float]) -> None:
    assert rates(steps, Schedule(**settings)) == pytest.approx([PEAK * share for share in shares])  # type: ignore[arg-type]
