"""What stands by, and when."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.attempts import Attempt
from orchestrator.job import JobSpec
from orchestrator.train.driver import standby
from orchestrator.train.driver.elastic import Pace
from orchestrator.train.driver.room import note_place
from orchestrator.train.driver.standby import note_environment, pays, standing_by

MakeJob = Callable[..., JobSpec]


@given(steps=st.integers(0, 10_000), step_s=st.floats(0.01, 10.0))
def test_it_pays_where_a_minute_is_left(steps: int, step_s: float) -> None:
    assert pays(Pace(steps, step_s, 10.0)) == (steps * step_s >= 60.0)


def test_it_does_not_pay_before_a_pace_is_known() -> None:
    assert not pays(None)


class Asked:
    """Writes down what Ray would be asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, int]] = []
        self.done = threading.Event()

    def __call__(self, environment: str, *, machine: str, processes: int) -> None:
        self.calls.append((environment, machine, processes))
        if len(self.calls) == 3:
            self.done.set()


@pytest.fixture
def attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attempt:
    monkeypatch.setattr(standby, "_SETTLE_S", 0.0)
    monkeypatch.setattr(standby, "_LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(standby, "pace_of", lambda *_, **__: Pace(1000, 1.0, 10.0))
    for rank, machine in enumerate("aab"):
        note_place(tmp_path, rank, machine=machine)
    note_environment(tmp_path, "worker", '{"env_vars":{"A":"1"}}')
    note_environment(tmp_path, "controller", "{}")
    return Attempt(tmp_path, 1)


def test_as_many_stand_by_on_each_machine_as_work_there(attempt: Attempt, tiny_job: MakeJob) -> None:
    asked = Asked()
    with standing_by(attempt, tiny_job(), here=lambda: "a", ask=asked):
        assert asked.done.wait(5.0)
    environment = '{"env_vars":{"A":"1"}}'
    assert asked.calls == [("{}", "a", 2), (environment, "a", 2), (environment, "b", 1)]


def test_none_stand_by_where_the_job_wants_none(attempt: Attempt, tiny_job: MakeJob) -> None:
    asked = Asked()
    job = tiny_job("train.workers.standby=false")
    with standing_by(attempt, job, here=lambda: "a", ask=asked):
        assert not asked.done.wait(0.1)
    assert asked.calls == []


def test_what_ray_refuses_is_no_reason_to_stop(attempt: Attempt, tiny_job: MakeJob) -> None:
    tried = threading.Event()

    def refuse(*_: Any, **__: Any) -> None:
        tried.set()
        raise RuntimeError("no such call")

    with standing_by(attempt, tiny_job(), here=lambda: "a", ask=refuse):
        assert tried.wait(5.0)
