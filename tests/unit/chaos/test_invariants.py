"""Each promise, kept and broken."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import presence
from orchestrator.chaos import invariants
from orchestrator.chaos.damage import Damage, tear
from orchestrator.chaos.watch import Redone
from orchestrator.checkpoint import layout
from orchestrator.store import commit, delete_committed, new_tmp, write_json
from orchestrator.track.events import iso_time
from orchestrator.track.metric_log import FILE


def checkpoint(run: Path, step: int) -> Path:
    """A committed one with the files that a reader looks at."""
    final = layout.step_folder(layout.checkpoints_folder(run), step)
    tmp = new_tmp(final)
    tmp.mkdir(parents=True)
    write_json(tmp / layout.PROGRESS, {"step": step})
    (tmp / layout.WEIGHTS).write_bytes(random.Random(step).randbytes(500))
    facts = layout.manifest(step=step, world_size=1, zero_stage=0, precision="fp32", attempt=1, versions={})
    commit(tmp, final, facts)
    return final


def write_lines(run: Path, *rows: tuple[int, float]) -> None:
    text = "".join(json.dumps({"train/step": step, "train/loss": loss}) + "\n" for step, loss in rows)
    (run / FILE).write_text(text)


def test_lines_in_order(tmp_path: Path) -> None:
    assert invariants.lines_of(tmp_path) == ([], [])
    write_lines(tmp_path, (1, 3.0), (2, 2.5), (3, 2.4))
    (tmp_path / FILE).open("a").write('{"train/st')
    lines, broken = invariants.lines_of(tmp_path)
    assert [line["train/step"] for line in lines] == [1, 2, 3]
    assert broken == []


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        (((1, 3.0), (2, 2.0), (2, 2.0)), "line 3 is of step 2 instead of 3"),
        (((1, 3.0), (3, 2.0)), "line 2 is of step 3 instead of 2"),
        (((2, 3.0),), "line 1 is of step 2 instead of 1"),
        (((1, float("nan")),), "the loss of step 1 is nan"),
    ],
)
def test_lines_out_of_order(tmp_path: Path, rows: tuple[tuple[int, float], ...], found: str) -> None:
    write_lines(tmp_path, *rows)
    (broken,) = invariants.lines_of(tmp_path)[1]
    assert found in broken


def test_an_update_that_was_left_out_for_its_loss(tmp_path: Path) -> None:
    line = {"train/step": 1, "train/loss": float("nan"), "train/skipped_updates": 1}
    (tmp_path / FILE).write_text(json.dumps(line) + "\n")
    assert invariants.lines_of(tmp_path)[1] == []


def test_a_torn_line_in_the_middle(tmp_path: Path) -> None:
    write_lines(tmp_path, (1, 3.0), (2, 2.0))
    raw = (tmp_path / FILE).read_text()
    (tmp_path / FILE).write_text(raw[:10] + "\n" + raw)
    assert invariants.lines_of(tmp_path)[1] == [f"{FILE}: line 1 is no line of metrics"]


def test_a_step_that_is_redone_has_its_loss_again() -> None:
    redone = [Redone(7, 2.0, 2.0), Redone(8, 2.0, 2.001), Redone(9, 2.0, 2.5)]
    (broken,) = invariants.redone_alike(redone, tolerance=1e-3, changed_after=None)
    assert "step 9 was 2 and is 2.5" in broken
    assert invariants.redone_alike(redone, tolerance=1e-3, changed_after=8) == []
    assert len(invariants.redone_alike(redone, tolerance=1e-6, changed_after=None)) == 2
    assert len(invariants.redone_alike([Redone(1, 2.0, float("nan"))], tolerance=1.0, changed_after=None)) == 1


def curve(steps: int, jump: float = 0.0, at: int = 0) -> dict[int, float]:
    rng = random.Random(5)
    return {s: 5.0 / s**0.3 + rng.gauss(0, 0.02) + (jump if s > at else 0.0) for s in range(1, steps + 1)}


def test_the_curve_goes_on_after_a_resume() -> None:
    assert invariants.continuous(curve(100), [20, 40, 60]) == []
    (broken,) = invariants.continuous(curve(100, jump=1.0, at=40), [20, 40, 60])
    assert "after the resume at step 40" in broken


def test_a_curve_that_has_hardly_gone_on_says_nothing() -> None:
    assert invariants.continuous(curve(100, jump=9.0, at=98), [98]) == []
    assert invariants.continuous({}, [3]) == []


def test_checkpoints_but_for_those_that_the_drill_has_damaged(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        checkpoint(tmp_path, step)
    assert invariants.checkpoints_whole(tmp_path, []) == []
    damage = tear(tmp_path, random.Random(1))
    assert damage.step == 30
    assert invariants.checkpoints_whole(tmp_path, [damage]) == []
    (broken,) = invariants.checkpoints_whole(tmp_path, [])
    assert "step-00000030 does not verify" in broken
    delete_committed(damage.folder)
    checkpoint(tmp_path, 30)  # saved anew: what is wrong with it now is not the drill's
    (damage.folder / layout.WEIGHTS).write_bytes(b"")
    assert len(invariants.checkpoints_whole(tmp_path, [damage])) == 1


def test_a_damaged_checkpoint_is_passed_over_until_it_is_saved_anew(tmp_path: Path) -> None:
    damage = Damage(tmp_path / "step-00000030", 1000.0, "x", None)

    def event(name: str, step: int, at: float) -> dict[str, object]:
        return {"event": name, "step": step, "attempt": 2, "time": iso_time(at)}

    before, other = event("resumed", 30, 999.0), event("resumed", 20, 1001.0)
    assert invariants.passed_over([before, other], [damage]) == []
    (broken,) = invariants.passed_over([before, other, event("resumed", 30, 1002.0)], [damage])
    assert broken == "attempt 2 went on from step 30, which was damaged"
    anew = [other, event("checkpoint", 30, 1002.0), event("resumed", 30, 1003.0)]
    assert invariants.passed_over(anew, [damage]) == []


@pytest.fixture
def child() -> Iterator[presence.Process]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        found = presence.process_of(process.pid)
        assert found is not None
        yield found
        process.kill()


def test_what_should_be_gone(child: presence.Process) -> None:
    (broken,) = invariants.none_left([child, child])
    assert f"process {child.pid} of an earlier attempt is still alive" in broken
    child.send(signal.SIGKILL)
    assert invariants.await_nothing(lambda: invariants.none_left([child]), limit_s=10.0) == []


def test_a_temporary_folder_is_left_alone_for_a_minute(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "step-00000010.tmp-0123"
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"x")
    old = time.time() - 100
    os.utime(folder, (old, old))
    assert invariants.nothing_unfinished(tmp_path, now=time.time()) == []  # somebody has just written into it
    os.utime(folder / "weights", (old, old))
    (broken,) = invariants.nothing_unfinished(tmp_path, now=time.time())
    assert "checkpoints/step-00000010.tmp-0123 was left behind" in broken


def test_shared_memory_of_the_living_and_of_the_dead() -> None:
    before = invariants.shared_memory()
    name = f"slipway-test-{uuid.uuid4().hex}"
    path = Path("/dev/shm") / name
    with path.open("wb"):
        assert not [one for one in invariants.shared_memory_given_back(before) if name in one]
    try:
        assert [one for one in invariants.shared_memory_given_back(before) if name in one]
        assert not [one for one in invariants.shared_memory_given_back(before | {name}) if name in one]
    finally:
        path.unlink()
