"""Metrics that are cut off and written anew: what was there is remembered."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.chaos.watch import Redone, Watch, watching
from orchestrator.track.metric_log import FILE


def lines(*steps: int, loss: float = 1.0) -> str:
    return "".join(json.dumps({"train/step": step, "train/loss": loss + step}) + "\n" for step in steps)


def test_a_cut_between_two_looks_is_seen(tmp_path: Path) -> None:
    watch, file = Watch(tmp_path), tmp_path / FILE
    watch.look()
    assert watch.highest == 0
    file.write_text(lines(1, 2, 3))
    watch.look()
    file.write_text(lines(1) + lines(2, 3, 4, loss=1.5))
    watch.look()
    assert watch.highest == 4
    assert watch.redone == [Redone(2, 3.0, 3.5), Redone(3, 4.0, 4.5)]


def test_a_line_that_is_being_written_waits(tmp_path: Path) -> None:
    watch, file = Watch(tmp_path), tmp_path / FILE
    whole = lines(1, 2)
    for length in range(len(whole) + 1):
        file.write_text(whole[:length])
        watch.look()
    assert watch.highest == 2
    assert watch.redone == []


@given(st.integers(0, 2**32))
def test_any_history_of_cuts(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    rng = random.Random(seed)
    folder = tmp_path_factory.mktemp("run")
    watch = Watch(folder)
    standing: list[str] = []
    done: list[int] = []
    for attempt in range(rng.randint(1, 5)):
        standing = standing[: rng.randint(0, len(standing))]
        for _ in range(rng.randint(0, 6)):
            step = len(standing) + 1
            done.append(step)
            standing.append(lines(step, loss=attempt / 10))
            (folder / FILE).write_text("".join(standing))
            if rng.random() < 0.3:
                watch.look()
        (folder / FILE).write_text("".join(standing))
        watch.look()
    assert watch.highest == max(done, default=0)
    assert len(watch.redone) == len(done) - len(set(done))


def test_looking_in_the_background(tmp_path: Path) -> None:
    with watching(tmp_path) as watch:
        (tmp_path / FILE).write_text(lines(1, 2, 3))
        until = time.monotonic() + 10
        while watch.highest < 3 and time.monotonic() < until:
            time.sleep(0.01)
        assert watch.highest == 3
