"""metrics.jsonl: each step once, in order, and what stands up to a checkpoint is never touched again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.attempts import Attempt, FencedError, writing_run
from orchestrator.track.metric_log import FILE, MetricLog, Redone, parse_line, read_metrics, redone_above
from orchestrator.track.metrics import EVALUATION_TIME, STEP, STEP_TIME


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "tiny-0123"
    path.mkdir()
    return path


@pytest.fixture
def begin(run: Path) -> Callable[[int], MetricLog]:
    """Opens the log as a new attempt does that resumes from a step."""

    def open_log(resumed_step: int) -> MetricLog:
        with writing_run(run) as attempt:
            return MetricLog(run, attempt=attempt, resumed_step=resumed_step)

    return open_log


Begin = Callable[[int], MetricLog]


def append(log: MetricLog, *steps: int, loss: float = 1.0) -> None:
    for step in steps:
        log.append({STEP: step, "train/loss": loss})


def steps(run: Path) -> list[int]:
    return [line[STEP] for line in read_metrics(run)]


def test_lines_are_seen_at_once_and_in_order(run: Path, begin: Begin) -> None:
    log = begin(0)
    for step in (1, 2, 3):
        append(log, step)
        assert steps(run) == list(range(1, step + 1))


def test_a_run_without_a_log_has_no_lines(run: Path) -> None:
    assert steps(run) == []


@pytest.mark.parametrize("resumed", [0, 1, 3, 5])
def test_a_resume_keeps_every_byte_up_to_its_checkpoint(run: Path, begin: Begin, resumed: int) -> None:
    append(begin(0), 1, 2, 3, 4, 5, loss=0.1)
    before = (run / FILE).read_bytes().splitlines(keepends=True)
    log = begin(resumed)
    assert (run / FILE).read_bytes() == b"".join(before[:resumed])
    append(log, *range(resumed + 1, 8), loss=0.2)
    after = (run / FILE).read_bytes().splitlines(keepends=True)
    assert after[:resumed] == before[:resumed]
    assert steps(run) == [1, 2, 3, 4, 5, 6, 7]
    assert [line["train/loss"] for line in read_metrics(run)] == [0.1] * resumed + [0.2] * (7 - resumed)


@given(cut=st.integers(1, 30), resumed=st.integers(0, 3))
def test_a_torn_last_line_goes_away(tmp_path_factory: pytest.TempPathFactory, cut: int, resumed: int) -> None:
    run = tmp_path_factory.mktemp("torn")
    with writing_run(run) as attempt:
        append(MetricLog(run, attempt=attempt, resumed_step=0), 1, 2, 3, 4)
        raw = (run / FILE).read_bytes()
        (run / FILE).write_bytes(raw[:-cut])
        assert steps(run) == [1, 2, 3]
        append(MetricLog(run, attempt=attempt, resumed_step=resumed), resumed + 1)
    assert steps(run) == list(range(1, resumed + 2))
    assert (run / FILE).read_bytes().startswith(b"".join(raw.splitlines(keepends=True)[:resumed]))


def test_an_overtaken_attempt_appends_nothing(run: Path, begin: Begin) -> None:
    old = begin(0)
    append(old, 1)
    new = begin(1)
    with pytest.raises(FencedError, match="attempt 1 of tiny-0123 was overtaken by attempt 2"):
        append(old, 2)
    append(new, 2)
    old.close()
    assert steps(run) == [1, 2]


def test_an_overtaken_attempt_does_not_truncate(run: Path, begin: Begin) -> None:
    append(begin(0), 1, 2)
    begin(2)
    with pytest.raises(FencedError, match="was overtaken"):
        MetricLog(run, attempt=Attempt(run, 1), resumed_step=0)
    assert steps(run) == [1, 2]


def test_what_a_resume_will_do_again_is_known_before(run: Path, begin: Begin) -> None:
    assert redone_above(run, 0) == Redone(0, 0.0, None)
    log = begin(0)
    assert redone_above(run, 0) == Redone(0, 0.0, None)
    for step in (1, 2, 3):
        log.append({STEP: step, STEP_TIME: 0.25, **({EVALUATION_TIME: 0.5} if step == 2 else {})})
    with (run / FILE).open("a") as file:
        file.write('{"train/step": 4, "ti')
    os.utime(run / FILE, (1000.5, 1000.5))
    assert redone_above(run, 1) == Redone(2, 1.0, 1000.5)
    assert redone_above(run, 3) == Redone(0, 0.0, 1000.5)
    assert steps(run) == [1, 2, 3]


def test_what_was_synced_and_closed_stays(run: Path, begin: Begin) -> None:
    log = begin(0)
    append(log, 1)
    log.sync()
    log.close()
    assert json.loads((run / FILE).read_text()) == {STEP: 1, "train/loss": 1.0}


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        (b'{"train/step": 3}\n', {STEP: 3}),
        (b'{"train/step": 3}', None),
        (b'{"train/step": 3\n', None),
        (b'{"train/step": "3"}\n', None),
        (b'{"train/loss": 3}\n', None),
        (b"[3]\n", None),
        (b"\xff\n", None),
        (b"\n", None),
    ],
)
def test_only_a_whole_line_that_names_its_step_counts(raw: bytes, line: dict[str, Any] | None) -> None:
    assert parse_line(raw) == line
