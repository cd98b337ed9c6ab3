"""A job's log on its way to people."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from orchestrator.cluster.jobs import watch
from orchestrator.cluster.jobs.values import Submission
from orchestrator.cluster.jobs.watch import Shown, follow
from orchestrator.errors import CapacityError
from orchestrator.track import progress

LOG = """\
2026-11-23 03:39:31,188\tINFO job_manager.py:581 -- Runtime env is setting up.
Running entrypoint for job slipway-tiny-1: python -m x
slipway-state {"state": "preparing"}
[   2.8 s] read: 1/1 units
slipway-state {"state": "training", "step": 20, "steps": 40, "loss": 2.5, "tokens_per_s": 10.0}
[   9.0 s] step 20/40  loss 2.5
{"run": "runs/x", "steps": 40}
last
"""
LINES = "[   2.8 s] read: 1/1 units\n[   9.0 s] step 20/40  loss 2.5\nlast\n"


@given(st.lists(st.integers(0, len(LOG)), max_size=8))
def test_plain_lines_come_whole_however_the_log_is_cut(cuts: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        written: list[str] = []
        patch.setattr("sys.stderr.write", written.append)
        shown = Shown()
        places = [0, *sorted(cuts), len(LOG)]
        for start, end in itertools.pairwise(places):
            shown.take(LOG[start:end])
        shown.close()
    assert "".join(written) == LINES
    assert shown.characters == len(LOG)


def test_what_is_left_at_the_end_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Shown()
    shown.take("error: half")
    shown.close()
    assert capsys.readouterr().err == "error: half\n"


def test_on_a_terminal_a_bar_takes_the_place_of_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Console(stderr=True, force_terminal=True, width=120, highlight=False)
    monkeypatch.setattr(watch, "console", terminal)
    monkeypatch.setattr(progress, "console", terminal)
    with terminal.capture() as captured:
        shown = Shown()
        shown.take(
            LOG + 'slipway-state {"state": "trained", "step": 40, "steps": 40, "loss": 2.0, "tokens_per_s": 9.0}\n'
        )
        shown.take('slipway-state {"state": "waiting", "why": "waits for 8 GPUs"}\n')
        shown.close()
    text = captured.get()
    assert "40/40 steps" in text
    assert "loss 2.0000  9 tokens/s" in text
    assert "[   9.0 s] step" not in text
    assert "waits for 8 GPUs" in text


class Breaking:
    """A dashboard whose connections break, each after so many characters; then it is gone, or tells all."""

    address = "http://head:8265"

    def __init__(self, *breaks: int, comes_back: bool) -> None:
        self._breaks, self._comes_back = list(breaks), comes_back

    async def follow(self, id: str) -> AsyncIterator[str]:
        if self._breaks:
            yield LOG[: self._breaks.pop(0)]
        elif self._comes_back:
            yield LOG
            return
        raise RuntimeError("connection closed")

    def submission(self, id: str) -> Submission:
        return Submission(id=id, status="SUCCEEDED", metadata={})


def test_a_connection_that_breaks_is_taken_up_where_it_was(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_AGAIN_S", 0.0)
    dashboard: Any = Breaking(120, 40, 200, comes_back=True)
    assert follow(dashboard, "x").status == "SUCCEEDED"
    assert capsys.readouterr().err == LINES


def test_a_dashboard_that_stays_away_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_AGAIN_S", 0.01)
    monkeypatch.setattr(watch, "_AGAIN_LIMIT_S", 0.1)
    dashboard: Any = Breaking(120, comes_back=False)
    with pytest.raises(CapacityError, match="no longer tells of x: connection closed") as raised:
        follow(dashboard, "x")
    assert "slipway jobs show x" in str(raised.value.fix)
