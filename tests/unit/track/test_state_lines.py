"""Lines that tell how far a submitted run is."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.track.state_lines import MARK, VARIABLE, StateLines, last_state, without_state_lines


class Written:
    """What was written, by a clock that is set by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.lines: list[str] = []
        self.states = StateLines(self.lines.append, lambda: self.now_s)

    @property
    def last(self) -> dict[str, object]:
        return last_state("".join(self.lines))


@pytest.fixture
def written() -> Written:
    return Written()


def test_every_line_holds_all_that_is_known(written: Written) -> None:
    written.states.say(state="preparing", stage="prepare")
    written.states.say(state="training", stage="train", run="runs/x", steps=9)
    assert written.last == {"state": "training", "stage": "train", "run": "runs/x", "steps": 9}
    assert len(written.lines) == 2


def test_figures_wait_for_their_time_and_go_with_the_next_change(written: Written) -> None:
    written.states.say(state="training")
    for step in range(1, 40):
        written.states.say(step=step)
    assert len(written.lines) == 1
    written.now_s = 2.0
    written.states.say(step=40)
    assert written.last["step"] == 40
    written.states.say(step=41)
    written.states.say(state="exporting")
    assert written.last == {"state": "exporting", "step": 41}
    assert len(written.lines) == 3


def test_nothing_new_writes_nothing(written: Written) -> None:
    for now_s in range(0, 100, 10):
        written.now_s = float(now_s)
        written.states.say(state="training", step=3)
    assert len(written.lines) == 1


def test_place_and_reason_end_with_the_waiting(written: Written) -> None:
    written.states.say(state="waiting", place=2, why="waits for 8 GPUs")
    written.states.say(state="waiting", place=1, why="waits for 8 GPUs")
    assert written.last["place"] == 1
    written.states.say(state="training")
    assert written.last == {"state": "training"}
    assert len(written.lines) == 3


def test_a_torn_line_is_passed_over() -> None:
    whole = f'{MARK}{{"state": "training", "step": 3}}\n'
    assert last_state(f'hello\n{whole}step 4\n{MARK}{{"state": "tra') == {"state": "training", "step": 3}
    assert last_state("no state here\n" + MARK + "[1]\n") == {}


@given(st.lists(st.tuples(st.booleans(), st.text('ab {}"', max_size=6)), max_size=12))
def test_what_people_read_is_the_rest(lines: list[tuple[bool, str]]) -> None:
    log = "".join(f"{MARK}{json.dumps({'why': text})}\n" if state else f"{text}\n" for state, text in lines)
    assert without_state_lines(log) == "".join(f"{text}\n" for state, text in lines if not state)


@pytest.mark.parametrize(("value", "lines"), [("1", 1), ("", 0)])
def test_a_process_that_is_no_submission_is_silent(value: str, lines: int) -> None:
    code = "from orchestrator.track.state_lines import say_state; say_state(state='training')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={VARIABLE: value}
    )
    assert (len(done.stderr.splitlines()), done.stdout) == (lines, "")
