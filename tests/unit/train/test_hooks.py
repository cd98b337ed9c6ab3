"""What leaves the loop: what is told of a step whose numbers are wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.attempts import writing_run
from orchestrator.job import JobSpec
from orchestrator.track import metrics
from orchestrator.track.events import read_events
from orchestrator.track.metric_log import MetricLog
from orchestrator.track.samples import SampleLog
from orchestrator.track.tracker import NoTracker
from orchestrator.train.guarding.guard import Action, Anomaly, Verdict
from orchestrator.train.hooks import RankHooks, Stopwatch


class Alerted(NoTracker):
    """Keeps the alerts."""

    def __init__(self) -> None:
        self.alerts: list[tuple[str, str]] = []

    def alert(self, title: str, text: str) -> None:
        """As Tracker."""
        self.alerts.append((title, text))


Make = Callable[..., RankHooks]


@pytest.fixture
def hooks_of(tmp_path: Path, tiny_job: Callable[..., JobSpec]) -> Iterator[Make]:
    run = tmp_path / "tiny-01"
    run.mkdir()
    with writing_run(run) as attempt:

        def make(tracker: Alerted, *, rank: int = 0) -> RankHooks:
            log = None if rank else MetricLog(run, attempt=attempt, resumed_step=0)
            saver: Any = None
            samples = SampleLog(run, attempt=attempt.number, rank=rank)
            return RankHooks(run, tiny_job(), attempt, saver, {}, log, tracker, lambda: False, Stopwatch(0.0), samples)

        yield make


def anomaly(step: int, action: Action) -> Anomaly:
    return Anomaly(step, Verdict("spike", action, metrics.LOSS, 9.0, 20.0, "too high"), (3, 4), 0)


def test_an_anomaly_is_an_event_a_line_and_at_most_one_alert_in_a_while(
    hooks_of: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = Alerted()
    hooks = hooks_of(tracker)
    for step, action in enumerate(("warn", "skip", "skip"), 1):
        hooks.noticed(anomaly(step, action))  # type: ignore[arg-type]
    told = [(e["step"], e["attempt"], e["action"], e["samples"]) for e in read_events(hooks.run)]
    assert told == [(1, 1, "warn", [3, 4]), (2, 1, "skip", [3, 4]), (3, 1, "skip", [3, 4])]
    assert capsys.readouterr().err.count("too high") == 3
    ((title, text),) = tracker.alerts
    assert title == "tiny-01: spike, skip"
    assert text == "step 2: too high: its update is left out; its samples are 3, 4"


def test_other_ranks_tell_nothing(hooks_of: Make) -> None:
    tracker = Alerted()
    hooks = hooks_of(tracker, rank=1)
    hooks.noticed(anomaly(1, "skip"))
    assert tracker.alerts == []
    assert list(read_events(hooks.run)) == []
