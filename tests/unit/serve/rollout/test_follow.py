"""A run that trains on: each new checkpoint is exported and brought once."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.errors import ServeError
from orchestrator.serve.rollout import follow
from orchestrator.serve.rollout.follow import Follower, newest_of
from orchestrator.store import commit, writing


def save(run: Path, step: int, *, within: str = "checkpoints", attempt: int | None = 1) -> None:
    folder = run / within / f"step-{step:08d}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with writing(folder) as tmp:
        (tmp / "progress.json").write_text("{}")
        commit(tmp, folder, {"step": step, "attempt": attempt})


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5.0
    while not done():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.005)


class Story:
    def __init__(self, run: Path) -> None:
        self.run = run
        self.brought: list[str] = []
        self.exports = 0
        self.refuse: Exception | None = None
        self.fail = 0
        served = run / "export" / "step-00000004"
        self.follower = Follower(run, self.bring, served=served, export=self.export, every_s=0.01)

    def export(self, run: Path) -> Path:
        self.exports += 1
        if self.fail:
            self.fail -= 1
            raise ServeError("another process exports")
        newest = newest_of(run)
        assert newest is not None
        folder = run / "export" / f"step-{newest.step:08d}"
        shutil.rmtree(folder, ignore_errors=True)
        save(run, newest.step, within="export", attempt=newest.attempt)
        return folder

    def bring(self, export: Path) -> None:
        if self.refuse is not None:
            raise self.refuse
        self.brought.append(export.name)


@pytest.fixture
def story(tmp_path: Path) -> Story:
    save(tmp_path, 4)
    return Story(tmp_path)


def test_what_is_new_is_brought_once(story: Story) -> None:
    time.sleep(0.05)
    assert story.brought == []  # what is there already is what was started with
    save(story.run, 8)
    wait_until(lambda: story.brought == ["step-00000008"])
    save(story.run, 12)
    wait_until(lambda: story.brought == ["step-00000008", "step-00000012"])
    time.sleep(0.05)
    assert story.exports == 2


@pytest.mark.parametrize("error", [ServeError("its loss is no number"), TimeoutError("no answer of the gateway")])
def test_one_that_is_refused_does_not_end_it(story: Story, error: Exception) -> None:
    story.refuse = error
    save(story.run, 8)
    wait_until(lambda: story.exports == 1)
    time.sleep(0.03)
    story.refuse = None
    save(story.run, 12)
    wait_until(lambda: story.brought == ["step-00000012"])


def test_what_came_while_the_service_started_is_brought(tmp_path: Path) -> None:
    save(tmp_path, 4)
    save(tmp_path, 8)
    story = Story(tmp_path)
    wait_until(lambda: story.brought == ["step-00000008"])
    time.sleep(0.05)
    assert story.exports == 1


def test_weights_are_brought_before_their_checkpoint_stands_and_not_once_more(story: Story) -> None:
    save(story.run, 8, within="weights")
    wait_until(lambda: story.brought == ["step-00000008"])
    save(story.run, 8)
    shutil.rmtree(story.run / "weights" / "step-00000008")
    time.sleep(0.05)
    assert story.exports == 1


def test_a_step_that_another_attempt_has_trained_again_is_brought_again(story: Story) -> None:
    save(story.run, 8, within="weights")
    wait_until(lambda: story.brought == ["step-00000008"])
    shutil.rmtree(story.run / "weights" / "step-00000008")  # the attempt has died, and step 4 is the newest again
    time.sleep(0.05)
    assert story.exports == 1
    save(story.run, 8, attempt=2)
    wait_until(lambda: story.brought == ["step-00000008"] * 2)


def test_an_export_that_fails_is_tried_again(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "_EXPORT_AGAIN_S", 0.02)
    story.fail = 2
    save(story.run, 8)
    wait_until(lambda: story.brought == ["step-00000008"])
    assert story.exports == 3


def test_it_stops(story: Story) -> None:
    story.follower.stop()
    time.sleep(0.05)
    save(story.run, 8)
    time.sleep(0.05)
    assert story.brought == []
