"""The story of a drill, over a program that keeps a run's promises, and over some that do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator import presence
from orchestrator.chaos import faults
from orchestrator.chaos.drill import Drill, run_drill
from orchestrator.chaos.schedule import Kind, Report
from orchestrator.errors import JobError
from orchestrator.track.events import read_events

Start = Callable[..., Path]


def drill(run: Path, *kinds: Kind, faults: int = 1, patience_s: float = 20.0) -> tuple[Report, list[str]]:
    said: list[str] = []
    asked = Drill(kinds=kinds, every_s=0.5, for_s=0.5 * faults, seed=1, patience_s=patience_s)
    return run_drill(run, asked, say=said.append), said


def test_a_run_that_keeps_its_promises(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_SLOW_S", 1.0)
    run = start()
    kinds: tuple[Kind, ...] = ("kill-driver", "preempt", "tear-checkpoint", "flip-bit", "slow-worker")
    report, said = drill(run, *kinds, faults=5)
    assert report.violations == []
    assert report.put_off == []
    assert len(report.faults) == 5
    assert {fault.kind for fault in report.faults} == set(kinds)
    for fault in report.faults:
        assert (fault.recovered_in_s is None) == (fault.kind in ("tear-checkpoint", "flip-bit")), said
    assert (report.samples_lost, report.samples_repeated) == (0, 0)
    assert report.steps > 10
    assert report.goodput > 0
    told = [event for event in read_events(run) if event["event"] == "chaos"]
    assert [event["kind"] for event in told] == [fault.kind for fault in report.faults]
    (now,) = presence.read_workers(run)
    assert now.process.is_alive
    assert now.attempt > 1


def test_the_end_of_the_run_covers_the_faults_so_far(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_SLOW_S", 0.2)
    report, said = drill(start(steps=130), "slow-worker", faults=50)
    assert report.violations == []
    assert 0 < len(report.faults) < 50
    assert report.steps == 130
    assert "trained to its end" in said[-1]


def test_a_resume_that_takes_a_batch_twice_and_has_forgotten_what_it_knew_is_found(start: Start) -> None:
    report, _ = drill(start(wrong="repeats forgets"), "kill-driver")
    assert report.samples_repeated == report.samples_lost > 0
    assert "are not those of the order" in report.violations[0]
    assert "when it is done again" in report.violations[1]
    assert "the loss jumps by" in report.violations[-1]


def test_a_driver_that_dies_by_itself_is_found(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.chaos.drill._RESTARTS_IN_S", 0.5)
    report, _ = drill(start(wrong="dies"), "slow-worker", faults=20)
    assert any("the driver has ended before the run did" in broken for broken in report.violations)


def test_a_run_that_does_not_recover_is_found(start: Start) -> None:
    run = start(wrong="hangs")
    report, _ = drill(run, "kill-driver", faults=20, patience_s=1.0)
    assert any("no new step in 1 s" in broken for broken in report.violations)


def test_a_drill_that_gives_no_fault_proves_nothing(start: Start) -> None:
    report, _ = drill(start(), "cut-network")
    assert not report.passed
    assert report.faults == []
    assert "no two workers on this machine have a connection" in report.put_off[0]
    assert "no fault was given" in report.violations[0]


def test_only_a_run_that_is_being_trained_is_disturbed(start: Start, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=presence.COMMAND):
        drill(tmp_path, "kill-driver")
    run = start(steps=1)
    command = presence.read_command(run)
    while command is None or command.process.is_alive:
        command = presence.read_command(run)
    with pytest.raises(JobError, match="trained to its end"):
        drill(run, "kill-driver")
    events = (run / "events.jsonl").read_text()
    (run / "events.jsonl").write_text(events.replace("finished", "stopped"))
    with pytest.raises(JobError, match="is not being trained"):
        drill(run, "kill-driver")
    (run / presence.COMMAND).write_text((run / presence.COMMAND).read_text().replace('"host": "', '"host": "not-'))
    with pytest.raises(JobError, match="is driven on not-"):
        drill(run, "kill-driver")
