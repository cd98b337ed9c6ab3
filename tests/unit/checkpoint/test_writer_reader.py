"""Checkpoints: all ranks' files or nothing, the newest that verifies, and no more than are to be kept."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from orchestrator.attempts import Attempt, FencedError, writing_run
from orchestrator.checkpoint.layout import (
    EXPORTED,
    PROGRESS,
    WEIGHTS,
    Progress,
    checkpoints_folder,
    step_folder,
    weights_folder,
)
from orchestrator.checkpoint.reader import (
    Checkpoint,
    best_checkpoint,
    committed_steps,
    newest_checkpoint,
    newest_weights,
    read_checkpoint,
)
from orchestrator.checkpoint.writer import CheckpointWriter, Content, Retention
from orchestrator.errors import StoreError
from orchestrator.store import MARKER, delete_committed, read_manifest

Fill = Callable[[Path], None]


class Alone:
    """A group of one."""

    rank, num_ranks = 0, 1

    def broadcast(self, value: Any) -> Any:
        return value

    def gather(self, value: Any) -> list[Any]:
        return [value]


@dataclass
class Meeting:
    """Where the threads of a group exchange values."""

    size: int
    slots: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.slots = [None] * self.size
        self.barrier = threading.Barrier(self.size, timeout=20)


@dataclass
class ThreadRank:
    """One rank of a group whose ranks are threads: every call is a collective, as over processes."""

    rank: int
    meeting: Meeting

    @property
    def num_ranks(self) -> int:
        return self.meeting.size

    def gather(self, value: Any) -> list[Any]:
        self.meeting.slots[self.rank] = value
        self.meeting.barrier.wait()
        values = list(self.meeting.slots)
        self.meeting.barrier.wait()
        return values

    def broadcast(self, value: Any) -> Any:
        return self.gather(value)[0]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "tiny-0123"
    path.mkdir()
    return path


@pytest.fixture
def attempt(run: Path) -> Attempt:
    with writing_run(run) as begun:
        return begun


def progress_of(step: int) -> Fill:
    def fill(folder: Path) -> None:
        (folder / "zero").mkdir()
        (folder / "zero" / "state.bin").write_bytes(bytes([step]) * 1000)
        (folder / PROGRESS).write_text(Progress(step=step).model_dump_json())

    return fill


def put_together(shares: Path, folder: Path) -> None:
    """Of what each rank has said of itself, all that an export reads."""
    (folder / WEIGHTS).write_text("".join(path.name for path in sorted(shares.iterdir())))


def content_of(
    fill: Fill, manifest: dict[str, Any] | None = None, *, rank: int = 0, weigh: Any = put_together
) -> Content:
    return Content(manifest or {}, lambda folder: (folder / f"rank-{rank}").touch(), weigh, fill)


def write(
    run: Path, attempt: Attempt, *steps: int, keep_last: int = 9, keep_every: int | None = None
) -> CheckpointWriter:
    writer = CheckpointWriter(run, group=Alone(), attempt=attempt, retention=Retention(keep_last, keep_every))
    for step in steps:
        writer.write(step, content_of(progress_of(step), {"step": step, "world_size": 1}))
    assert list(weights_folder(run).glob("*")) == []
    return writer


def names(run: Path) -> list[str]:
    return sorted(os.listdir(checkpoints_folder(run)))


def newest(run: Path) -> tuple[int | None, list[str]]:
    """The step that a resume would take, and what it said."""
    said: list[str] = []
    found = newest_checkpoint(run, say=said.append)
    return (found.step if found else None), said


def test_what_is_written_is_found_and_verifies(run: Path, attempt: Attempt) -> None:
    write(run, attempt, 10, 20)
    assert newest(run) == (20, [])
    found = read_checkpoint(committed_steps(run)[0])
    assert (found.step, found.manifest["world_size"]) == (10, 1)
    assert [f["path"] for f in found.manifest["files"]] == [WEIGHTS, PROGRESS, "zero/state.bin"]
    assert (found.path / WEIGHTS).read_text() == "rank-0"


def test_a_run_without_checkpoints_has_none(run: Path) -> None:
    assert newest(run) == (None, [])


def test_retention_gives_up_the_oldest(run: Path, attempt: Attempt) -> None:
    write(run, attempt, 10, 20, 30, keep_last=2)
    assert names(run) == ["step-00000020", "step-00000030"]


def test_retention_keeps_every_so_many_steps(run: Path, attempt: Attempt) -> None:
    write(run, attempt, 10, 20, 30, 40, 50, keep_last=1, keep_every=20)
    assert names(run) == ["step-00000020", "step-00000040", "step-00000050"]


def test_a_step_written_again_replaces_the_old_one(run: Path, attempt: Attempt) -> None:
    write(run, attempt, 10)
    write(run, attempt, 10)
    assert newest(run) == (10, [])
    assert names(run) == ["step-00000010"]


def test_leftovers_of_a_killed_attempt_are_swept(run: Path, attempt: Attempt) -> None:
    (checkpoints_folder(run) / "step-00000010.tmp-ab" / "zero").mkdir(parents=True)
    write(run, attempt)
    assert names(run) == []


class TestDamage:
    @pytest.mark.parametrize("damage", ["torn", "altered", "absent", "manifest", "progress"])
    def test_the_one_before_is_taken_and_said(self, run: Path, attempt: Attempt, damage: str) -> None:
        write(run, attempt, 10, 20)
        folder = checkpoints_folder(run) / "step-00000020"
        state = folder / "zero" / "state.bin"
        if damage == "torn":
            os.truncate(state, 10)
        elif damage == "altered":
            state.write_bytes(b"x" * 1000)
        elif damage == "absent":
            state.unlink()
        elif damage == "manifest":
            os.truncate(folder / "manifest.json", 30)
        else:
            (folder / PROGRESS).write_text("{}x")
        step, said = newest(run)
        assert step == 10
        assert len(said) == 1
        assert said[0].startswith("passing over step-00000020: ")
        assert str(folder) in said[0]

    def test_a_folder_without_its_marker_is_not_there(self, run: Path, attempt: Attempt) -> None:
        write(run, attempt, 10, 20)
        (checkpoints_folder(run) / "step-00000020" / MARKER).unlink()
        assert newest(run) == (10, [])

    def test_none_that_verifies_stops_the_run(self, run: Path, attempt: Attempt) -> None:
        write(run, attempt, 10, 20)
        for step in ("10", "20"):
            os.truncate(checkpoints_folder(run) / f"step-000000{step}" / "zero" / "state.bin", 10)
        with pytest.raises(
            StoreError, match=r"no checkpoint of tiny-0123 verifies; the newest: .*step-00000020"
        ) as told:
            newest(run)
        assert f"delete {checkpoints_folder(run)} to start this run anew" in str(told.value.fix)

    def test_a_step_that_was_damaged_can_be_written_again(self, run: Path, attempt: Attempt) -> None:
        write(run, attempt, 10)
        os.truncate(checkpoints_folder(run) / "step-00000010" / "zero" / "state.bin", 10)
        write(run, attempt, 10)
        assert newest(run) == (10, [])


class Stopped(Exception):
    """What a test ends a writer with."""


class TestWeightsFirst:
    """The weights of a checkpoint can be exported before the rest of it is durable."""

    def weigh(self, shares: Path, folder: Path) -> None:
        put_together(shares, folder)
        (folder / PROGRESS).write_text(Progress(step=20, best_step=self.best_step).model_dump_json())

    best_step: int | None = None
    found: Checkpoint | None = None

    def write(self, run: Path, attempt: Attempt, look: Callable[[Path], object]) -> None:
        """Steps 10 and 20; `look` is called when the weights of the second stand, and nothing else of it."""

        def fill(folder: Path) -> None:
            look(step_folder(weights_folder(run), 20))
            (folder / "zero").mkdir()
            (folder / "zero" / "state.bin").write_bytes(b"x" * 1000)

        write(run, attempt, 10).write(20, content_of(fill, {"step": 20}, weigh=self.weigh))

    def take(self, run: Path) -> None:
        self.found = best_checkpoint(run, say=print, deep=EXPORTED, ahead=True)

    def test_they_are_taken_before_the_checkpoint_stands(self, run: Path, attempt: Attempt) -> None:
        def look(folder: Path) -> None:
            self.take(run)
            assert newest(run) == (10, [])  # what a resume takes
            assert newest_weights(run) == folder
            assert (folder / WEIGHTS).stat().st_nlink == 2  # it stands in both, and on the disk once

        self.write(run, attempt, look)
        assert self.found is not None
        assert (self.found.path, self.found.step) == (step_folder(weights_folder(run), 20), 20)
        assert newest(run) == (20, [])
        folder = step_folder(checkpoints_folder(run), 20)
        assert newest_weights(run) == folder
        assert {row["path"]: row for row in read_manifest(folder)["files"]}.items() >= {
            row["path"]: row for row in self.found.manifest["files"]
        }.items()
        assert (folder / WEIGHTS).stat().st_nlink == 1
        assert not list(weights_folder(run).iterdir())

    def test_the_best_of_the_steps_before_is_taken_where_a_metric_chose_it(self, run: Path, attempt: Attempt) -> None:
        self.best_step = 10
        self.write(run, attempt, lambda _: self.take(run))
        assert self.found is not None
        assert self.found.path == step_folder(checkpoints_folder(run), 10)

    def test_torn_ones_are_not_taken(self, run: Path, attempt: Attempt) -> None:
        def tear(folder: Path) -> None:
            os.truncate(folder / WEIGHTS, 2)
            self.take(run)

        self.write(run, attempt, tear)
        assert self.found is not None
        assert self.found.step == 10
        assert newest(run)[0] == 10  # nor is the checkpoint, which has the same file

    def test_they_go_with_a_checkpoint_that_fails(self, run: Path, attempt: Attempt) -> None:
        def fail(_: Path) -> None:
            raise Stopped

        with pytest.raises(Stopped):
            self.write(run, attempt, fail)
        self.take(run)
        assert self.found is not None
        assert self.found.step == 10
        assert not list(weights_folder(run).iterdir())

    def test_those_of_a_killed_attempt_are_readable_until_the_next_begins(self, run: Path, attempt: Attempt) -> None:
        left = run / "left"
        self.write(run, attempt, lambda folder: shutil.copytree(folder, left))
        delete_committed(step_folder(checkpoints_folder(run), 20))
        left.rename(step_folder(weights_folder(run), 20))
        self.take(run)
        assert self.found is not None
        assert self.found.step == 20
        write(run, attempt)
        assert newest_weights(run) == step_folder(checkpoints_folder(run), 10)

    def test_an_overtaken_attempt_leaves_those_of_the_newer_one(self, run: Path, attempt: Attempt) -> None:
        newer = step_folder(weights_folder(run), 30)

        def be_overtaken(folder: Path) -> None:
            with writing_run(run):
                shutil.copytree(folder, newer)

        with pytest.raises(FencedError):
            self.write(run, attempt, be_overtaken)
        assert newest_weights(run) == newer

    def test_an_overtaken_attempt_publishes_none(self, run: Path, attempt: Attempt) -> None:
        with writing_run(run):
            pass
        with pytest.raises(FencedError):
            self.write(run, attempt, lambda _: pytest.fail("weights stand"))


class TestFailure:
    @pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), ValueError("no number")])
    def test_a_failed_write_publishes_nothing(self, run: Path, attempt: Attempt, error: Exception) -> None:
        writer = write(run, attempt, 10)

        def fill(folder: Path) -> None:
            (folder / "half").write_text("half")
            raise error

        with pytest.raises(type(error), match=str(error).replace("[", r"\[").replace("]", r"\]")):
            writer.write(20, content_of(fill))
        assert names(run) == ["step-00000010"]
        assert newest(run) == (10, [])

    def test_an_overtaken_attempt_publishes_nothing(self, run: Path, attempt: Attempt) -> None:
        writer = write(run, attempt, 10)
        with writing_run(run):
            pass
        with pytest.raises(FencedError, match="attempt 1 of tiny-0123 was overtaken by attempt 2"):
            writer.write(20, content_of(progress_of(20)))
        assert names(run) == ["step-00000010"]


def on_threads(run: Path, attempt: Attempt, fills: list[Fill]) -> list[BaseException | Path]:
    """Write step 7 from as many ranks as there are fills; what each returned or raised."""
    meeting = Meeting(len(fills))
    ended: list[Any] = [None] * len(fills)

    def work(rank: int) -> None:
        try:
            writer = CheckpointWriter(run, group=ThreadRank(rank, meeting), attempt=attempt, retention=Retention(2))
            ended[rank] = writer.write(7, content_of(fills[rank], {"step": 7}, rank=rank))
        except BaseException as error:  # noqa: BLE001 - handed to the test
            ended[rank] = error

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(fills))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return ended


class TestManyRanks:
    @staticmethod
    def fill_of(rank: int) -> Fill:
        def fill(folder: Path) -> None:
            for part in range(3):
                (folder / f"rank-{rank}-{part}").write_text(f"{rank} {part}")
            if rank == 0:
                (folder / PROGRESS).write_text(Progress(step=7).model_dump_json())

        return fill

    @pytest.mark.parametrize("num_ranks", [2, 3])
    def test_every_ranks_files_stand_in_one_manifest(self, run: Path, attempt: Attempt, num_ranks: int) -> None:
        ended = on_threads(run, attempt, [self.fill_of(rank) for rank in range(num_ranks)])
        folder = checkpoints_folder(run) / "step-00000007"
        assert ended == [folder] * num_ranks
        listed = [row["path"] for row in read_manifest(folder)["files"]]
        assert listed == sorted([WEIGHTS, PROGRESS, *(f"rank-{r}-{p}" for r in range(num_ranks) for p in range(3))])
        assert (folder / WEIGHTS).read_text() == "".join(f"rank-{rank}" for rank in range(num_ranks))
        assert read_checkpoint(folder).step == 7

    @pytest.mark.parametrize("broken", [0, 2])
    def test_one_rank_that_cannot_write_fails_all_and_publishes_nothing(
        self, run: Path, attempt: Attempt, broken: int
    ) -> None:
        def fail(_: Path) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        fills = [fail if rank == broken else self.fill_of(rank) for rank in range(3)]
        ended = on_threads(run, attempt, fills)
        assert [getattr(error, "errno", None) for error in ended] == [errno.ENOSPC] * 3
        assert names(run) == []
