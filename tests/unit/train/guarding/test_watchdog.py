"""The watchdog: when a phase has lasted too long by a clock of the test's, and a process that really hangs."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.attempts import Attempt, writing_run
from orchestrator.job_train import Watchdog as Limits
from orchestrator.track.events import read_events
from orchestrator.train.guarding.watchdog import (
    Hang,
    Watchdog,
    WatchedEvaluation,
    WatchedHooks,
    limit_s,
    read_hang,
    watching,
)
from orchestrator.train.recovery.failures import HANG_EXIT_CODE

WORKER = """
import sys, threading
from pathlib import Path
from orchestrator.attempts import Attempt
from orchestrator.job_train import Watchdog as Limits
from orchestrator.train.guarding.watchdog import watching

def a_collective_that_nobody_joins():
    print("waiting", flush=True)
    threading.Event().wait()

run, rank, limit_s = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
with watching(Attempt(run, 1), rank=rank, num_ranks=2, limits=Limits(step_s=limit_s)) as dog:
    dog.stepped(7, 0.01)
    a_collective_that_nobody_joins()
"""


class Clock:
    """Moves when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make(limits: Limits | None = None, run: Path = Path("none")) -> tuple[Watchdog, Clock]:
    clock = Clock()
    return Watchdog(Attempt(run, 1), rank=1, num_ranks=2, limits=limits or Limits(), clock=clock), clock


def waits(dog: Watchdog, clock: Clock, seconds: int) -> Hang | None:
    """The watchdog looks every second for so long."""
    for _ in range(seconds):
        clock.now += 1
        if (hang := dog.look()) is not None:
            return hang
    return None


@pytest.mark.parametrize(
    ("phase", "steps_s", "limits", "expected"),
    [
        ("step", [], {}, 30),
        ("step", [0.1, 0.2, 0.3], {}, 30),
        ("step", [4.0, 5.0, 900.0], {}, 50),
        ("step", [4.0, 5.0, 900.0], {"step_s": 2.5}, 2.5),
        ("setup", [], {}, 1800),
        ("setup", [], {"setup_s": 60}, 60),
        ("checkpoint", [], {}, 1800),
        ("checkpoint", [], {"checkpoint_s": 5}, 5),
        ("evaluation", [], {}, 7000),
        ("evaluation", [], {"evaluation_s": 5}, 5),
    ],
)
def test_limits(phase: Any, steps_s: list[float], limits: dict[str, float], expected: float) -> None:
    found = limit_s(phase, Limits(**limits), recent_steps_s=steps_s, longest_evaluation_s=700)
    assert found == pytest.approx(expected)


def test_a_step_that_lasts_too_long_is_found_within_seconds_of_its_limit() -> None:
    dog, clock = make()
    dog.stepped(12, 0.2)
    began_at = clock.now
    hang = waits(dog, clock, 100)
    assert hang == Hang(rank=1, phase="step", step=12, limit_s=30.0)
    assert clock.now - began_at <= 33
    assert hang.cause == "rank 1 made no progress for 30 s: step, after step 12"


def test_the_first_step_belongs_to_the_set_up() -> None:
    dog, clock = make(Limits(setup_s=60, step_s=5))
    assert waits(dog, clock, 59) is None
    assert waits(dog, clock, 5) == Hang(1, "setup", 0, 60)


def test_progress_that_comes_late_but_comes_is_no_hang() -> None:
    dog, clock = make(Limits(step_s=10))
    for step in range(1, 50):
        dog.stepped(step, 9.0)
        assert waits(dog, clock, 10) is None


def test_a_process_that_was_stopped_itself_has_not_waited() -> None:
    dog, clock = make()
    dog.stepped(1, 0.1)
    assert waits(dog, clock, 3) is None
    clock.now += 3600
    assert dog.look() is None
    assert waits(dog, clock, 15) is None
    assert waits(dog, clock, 15) is not None


def test_phases_have_limits_of_their_own_and_return_to_what_was_before() -> None:
    dog, clock = make(Limits(step_s=10, checkpoint_s=40, evaluation_s=80))
    dog.stepped(3, 0.1)
    with dog.during("checkpoint"):
        assert waits(dog, clock, 39) is None
    assert waits(dog, clock, 10) is None
    with dog.during("evaluation"):
        assert waits(dog, clock, 79) is None
        assert waits(dog, clock, 5) == Hang(1, "evaluation", 3, 80)
    dog.look()
    assert waits(dog, clock, 12) == Hang(1, "step", 3, 10)


def test_hooks_and_evaluation_tell_it_what_they_are_in() -> None:
    dog, clock = make(Limits(step_s=10, checkpoint_s=40, evaluation_s=80))
    found: list[Hang | None] = []

    class Slow:
        def on_step(self, line: dict[str, Any]) -> None:
            found.append(waits(dog, clock, 15))

        def save(self, progress: Any) -> None:
            found.append(waits(dog, clock, 45))

        def stop_requested(self) -> bool:
            return True

    def evaluate(step: int) -> Any:
        found.append(waits(dog, clock, 85))

    hooks = WatchedHooks(Slow(), dog)
    hooks.on_step({"train/step": 5, "time/step_s": 0.1})
    hooks.save(None)  # type: ignore[arg-type]
    WatchedEvaluation(evaluate, dog)(5)
    assert hooks.stop_requested()
    assert found == [Hang(1, "step", 5, 10), Hang(1, "checkpoint", 5, 40), Hang(1, "evaluation", 5, 80)]


def test_a_stamp_costs_a_step_nothing() -> None:
    dog, _ = make()
    began_at = time.perf_counter()
    for step in range(10_000):
        dog.stepped(step, 0.1)
    assert (time.perf_counter() - began_at) / 10_000 < 50e-6


def test_without_a_hang_nothing_is_left(tmp_path: Path) -> None:
    with writing_run(tmp_path) as attempt:
        with watching(attempt, rank=0, num_ranks=1, limits=Limits()) as dog, dog.until_left():
            dog.stepped(1, 0.1)
        assert read_hang(attempt) is None
    assert not (tmp_path / "stacks").exists()


def test_ranks_that_hang_leave_all_stacks_and_end(tmp_path: Path) -> None:
    """One reaches its limit; the other, which may wait for minutes, is asked for its stack."""
    with writing_run(tmp_path) as attempt:
        command = [sys.executable, "-c", WORKER, str(tmp_path)]
        ranks = [subprocess.Popen([*command, str(r), s], stdout=subprocess.PIPE) for r, s in ((0, "1"), (1, "600"))]
        try:
            for rank in ranks:
                assert rank.stdout is not None
                assert rank.stdout.readline()
            began_at = time.monotonic()
            assert [rank.wait(timeout=20) for rank in ranks] == [HANG_EXIT_CODE, HANG_EXIT_CODE]
            assert time.monotonic() - began_at < 1 + 10
        finally:
            for rank in ranks:
                rank.kill()
                rank.communicate()
        assert read_hang(attempt) == Hang(0, "step", 7, 1.0)
    for rank_number in (0, 1):
        stack = (tmp_path / "stacks" / f"attempt-1-rank-{rank_number}.txt").read_text()
        assert "a_collective_that_nobody_joins" in stack
    (event,) = [line for line in read_events(tmp_path) if line["event"] == "hang"]
    assert (event["rank"], event["phase"], event["step"], event["attempt"]) == (0, "step", 7, 1)
