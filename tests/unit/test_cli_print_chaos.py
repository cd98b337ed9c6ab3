"""What people see at the end of a drill."""

from __future__ import annotations

import io

from rich.console import Console

from orchestrator.chaos.schedule import Fault, Report
from orchestrator.cli_print_chaos import shown


def text_of(report: Report) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    for part in shown(report):
        console.print(part)
    return console.export_text()


def test_a_clean_drill() -> None:
    faults = [
        Fault("kill-worker", "2026-11-22T21:01:05.164+00:00", 2197, 14.72),
        Fault("flip-bit", "2026-11-22T21:02:05.164+00:00"),
    ]
    told = text_of(Report(faults=faults, steps=300, steps_redone=90, goodput=0.7172))
    assert "kill-worker │ 21:01:05 │    2197 │       14.7 s" in told
    assert "flip-bit    │ 21:02:05 │         │" in told
    assert "0 lost, 0 repeated" in told
    assert "step 300" in told
    assert "71.7% of the run" in told
    assert told.rstrip().endswith("pass")


def test_a_broken_promise_and_a_fault_that_was_put_off() -> None:
    report = Report(put_off=["flip-bit: there is no checkpoint yet"], samples_lost=3, samples_skipped=64)
    report.violations.append("step 2: no rank has noted samples 0 to 2 [sic]")
    told = text_of(report)
    assert "3 lost, 0 repeated, 64 left out on purpose" in told
    assert "not given: flip-bit: there is no checkpoint yet" in told
    assert "broken: step 2: no rank has noted samples 0 to 2 [sic]" in told
    assert told.rstrip().endswith("fail")
