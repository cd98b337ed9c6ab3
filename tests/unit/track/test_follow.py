"""Following a run from another process: each step once, as it comes, whatever happens to the file."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from orchestrator.track import follow, state_lines
from orchestrator.track.follow import describe, following
from orchestrator.track.metric_log import FILE
from orchestrator.track.metrics import (
    EVAL_LOSS,
    GOODPUT,
    LOSS,
    SLOWEST_EXCESS,
    SLOWEST_RANK,
    STEP,
    STEP_TIME,
    TOKENS_PER_S,
)


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "_POLL_S", 0.01)


def line(step: int, loss: float = 1.5) -> str:
    return json.dumps({STEP: step, LOSS: loss, TOKENS_PER_S: 1234.5}) + "\n"


def append(run: Path, text: str) -> None:
    with (run / FILE).open("a") as file:
        file.write(text)


def shown(capsys: pytest.CaptureFixture[str]) -> list[int]:
    """The steps that were said, in order."""
    said = capsys.readouterr().err.splitlines()
    return [int(text.split("step ")[1].split("/")[0]) for text in said]


def test_a_step_is_told_as_people_read_it() -> None:
    told = describe({STEP: 20, LOSS: 2.34567, TOKENS_PER_S: 12345.6}, 150)
    assert told == "step 20/150  loss 2.3457  12,346 tokens/s"
    told = describe({STEP: 20, LOSS: 2.3, TOKENS_PER_S: 1.0, EVAL_LOSS: 2.5}, 150)
    assert told.endswith("  validation 2.5000")


@pytest.mark.parametrize(
    ("excess", "own_s", "said"),
    [
        (0.0, 1.0, ""),
        (0.2, 1.0, ""),
        (0.214, 1.0, "  rank 3 21% slower"),
        (4.0, 0.5, "  rank 3 400% slower"),
        (4.0, 0.05, ""),  # 0.04 s of a step of a second: nobody waits for that
    ],
)
def test_a_rank_that_holds_up_the_others_is_named(excess: float, own_s: float, said: str) -> None:
    plain = {STEP: 20, LOSS: 2.3, TOKENS_PER_S: 1.0, STEP_TIME: 1.0}
    told = describe({**plain, SLOWEST_RANK: 3, SLOWEST_EXCESS: excess, "time/own_s/3": own_s}, 150)
    assert told == describe(plain, 150) + said


def test_the_steps_that_are_due_are_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with following(tmp_path, first_step=0, steps=25, every=10):
        for step in range(1, 26):
            append(tmp_path, line(step))
            if step % 6 == 0:
                time.sleep(0.03)
    assert shown(capsys) == [10, 20, 25]


def test_what_was_written_just_before_the_end_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with following(tmp_path, first_step=0, steps=5, every=1):
        append(tmp_path, "".join(line(step) for step in range(1, 6)))
    assert shown(capsys) == [1, 2, 3, 4, 5]


def test_a_resumed_run_tells_the_steps_it_does_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    append(tmp_path, "".join(line(step) for step in range(1, 8)))
    with following(tmp_path, first_step=3, steps=9, every=1):
        time.sleep(0.05)  # the attempt before left steps 4 to 7 beyond its checkpoint
        (tmp_path / FILE).write_text("".join(line(step) for step in range(1, 4)))
        time.sleep(0.05)
        append(tmp_path, "".join(line(step, loss=2.5) for step in range(4, 10)))
    said = capsys.readouterr().err
    assert [f"step {step}/9" in said for step in range(1, 10)] == [False] * 3 + [True] * 6
    assert said.count("loss 2.5") == len(said.splitlines()) == 6


def test_a_line_that_is_being_written_is_told_when_it_is_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with following(tmp_path, first_step=0, steps=9, every=1):
        append(tmp_path, line(1)[:20])
        time.sleep(0.05)
        append(tmp_path, line(1)[20:] + "not json\n" + line(2))
    assert shown(capsys) == [1, 2]


def test_a_run_that_never_writes_tells_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with following(tmp_path, first_step=0, steps=9, every=1):
        time.sleep(0.03)
    assert shown(capsys) == []


def test_who_follows_from_elsewhere_is_told_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setenv(state_lines.VARIABLE, "1")
    monkeypatch.setattr(state_lines, "_own", state_lines.StateLines(told.append))
    with following(tmp_path, first_step=0, steps=9, every=100, cost=lambda: 1.5):
        append(tmp_path, json.dumps({STEP: 3, LOSS: 2.5, TOKENS_PER_S: 10.0, GOODPUT: 0.9}) + "\n")
    expected = {"step": 3, "steps": 9, "cost": 1.5, "loss": 2.5, "tokens_per_s": 10.0, "goodput": 0.9}
    assert state_lines.last_state("".join(told)) == expected
