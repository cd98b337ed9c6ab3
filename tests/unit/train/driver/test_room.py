"""The watch of a cluster: on machines that are made up."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.attempts import Attempt
from orchestrator.cluster.bounds import Bounds, NodeType
from orchestrator.cluster.demand import Demand
from orchestrator.cluster.view import Machine, ready_view
from orchestrator.job import JobSpec
from orchestrator.job_train import Workers
from orchestrator.plan import Node
from orchestrator.runfolder import stop_requested
from orchestrator.track import events
from orchestrator.train.driver import room
from orchestrator.train.driver.room import Watch, note_place, places_of, record_size
from orchestrator.train.driver.waiting import Cluster
from orchestrator.train.recovery.failures import Failure, FailureClass

MakeJob = Callable[..., JobSpec]


def machine(name: str, *, free: float = 1.0, state: str = "ready", cpus: float = 1.0) -> Machine:
    return Machine(name, Node(cpus=cpus), Node(cpus=free), state)  # type: ignore[arg-type]


def cluster(seen: list[Machine], queue: object = None) -> Cluster:
    return Cluster(lambda: ready_view(seen), lambda: seen, queue)  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def write_history(run: Path, *, step_s: float, restart_s: float) -> None:
    """An attempt that began a while ago and has made 20 steps."""
    at = 1_700_000_000.0
    facts = [
        {"event": "launched", "attempt": 1, "workers": 1, "driver": "d", "time": events.iso_time(at)},
        {
            "event": "first-step",
            "attempt": 1,
            "step": 1,
            "began": events.iso_time(at + restart_s),
            "time": events.iso_time(at + restart_s + step_s),
        },
    ]
    (run / events.FILE).write_text("".join(json.dumps(fact) + "\n" for fact in facts))
    lines = [{"train/step": step, "time/step_s": 50.0 if step == 1 else step_s} for step in range(1, 21)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def look_for(watch: Watch, seen: list[Machine], seconds: int, *, since_s: float = 0.0) -> room.Wish | None:
    for passed_s in range(0, seconds + 1, 2):
        if (wish := watch.look(seen, now_s=watch._began_at + since_s + passed_s)) is not None:
            return wish
    return None


GROWING = ("train.workers={min: 1, max: 2, grow_after_s: 30}", "train.steps=1000")


def test_more_room_is_taken_once_it_is_stable_and_pays(tiny_job: MakeJob, run: Path) -> None:
    note_place(run, 0, machine="a")
    write_history(run, step_s=1.0, restart_s=20.0)
    both = [machine("a", free=0), machine("b")]
    watch = Watch(Attempt(run, 1), tiny_job(*GROWING), workers=1, cluster=cluster(both))
    assert look_for(watch, both, 28) is None  # it has just begun
    assert look_for(watch, [machine("a", free=0), machine("b", free=0)], 2, since_s=30) is None
    assert look_for(watch, both, 8, since_s=34) is None
    wish = look_for(watch, both, 4, since_s=44)
    assert wish == room.Wish("more", "the cluster has room for 2 workers")


def test_a_run_that_is_nearly_done_is_left_alone(tiny_job: MakeJob, run: Path) -> None:
    note_place(run, 0, machine="a")
    write_history(run, step_s=0.01, restart_s=20.0)
    both = [machine("a", free=0), machine("b")]
    watch = Watch(Attempt(run, 1), tiny_job(*GROWING), workers=1, cluster=cluster(both))
    assert look_for(watch, both, 600) is None


class _Empty:
    """A queue of nobody, on a cluster whose autoscaler may start one machine more."""

    def waiting(self) -> list[str]:
        return []

    def bounds(self) -> Bounds:
        return Bounds([NodeType("worker", Node(cpus=1.0), 2)], 2)


class _Asked(Demand):
    """What an autoscaler is asked for; it comes when the test says so."""

    def __init__(self) -> None:
        self.count, self.has_come = 0, False

    def ask(self, workers: Workers, count: int) -> None:
        self.count = count

    def come(self) -> bool:
        came, self.has_come = self.has_come, False
        if came:
            self.withdraw()
        return came

    def withdraw(self) -> None:
        self.count = 0


def test_an_autoscaler_is_asked_for_more_where_that_pays(tiny_job: MakeJob, run: Path) -> None:
    note_place(run, 0, machine="a")
    write_history(run, step_s=1.0, restart_s=20.0)
    alone, asked = [machine("a", free=0)], _Asked()
    watch = Watch(Attempt(run, 1), tiny_job(*GROWING), workers=1, cluster=cluster(alone, _Empty()), demand=asked)
    assert look_for(watch, alone, 28) is None
    assert asked.count == 0  # it has just begun
    assert look_for(watch, alone, 4, since_s=30) is None
    assert asked.count == 1
    asked.has_come = True
    assert look_for(watch, alone, 0, since_s=36) is None
    assert asked.count == 0  # what it held is free now
    wish = look_for(watch, [*alone, machine("b")], 20, since_s=38)
    assert wish == room.Wish("more", "the cluster has room for 2 workers")


def test_nothing_is_asked_of_an_autoscaler_for_a_run_that_is_nearly_done(tiny_job: MakeJob, run: Path) -> None:
    note_place(run, 0, machine="a")
    write_history(run, step_s=0.01, restart_s=20.0)
    alone, asked = [machine("a", free=0)], _Asked()
    watch = Watch(Attempt(run, 1), tiny_job(*GROWING), workers=1, cluster=cluster(alone, _Empty()), demand=asked)
    assert look_for(watch, alone, 200) is None
    assert asked.count == 0


def test_what_was_asked_for_is_withdrawn_with_the_attempt(tiny_job: MakeJob, run: Path) -> None:
    note_place(run, 0, machine="a")
    write_history(run, step_s=1.0, restart_s=20.0)
    alone, asked = [machine("a", free=0)], _Asked()
    watch = Watch(Attempt(run, 1), tiny_job(*GROWING), workers=1, cluster=cluster(alone, _Empty()), demand=asked)
    assert look_for(watch, alone, 34) is None
    assert asked.count == 1
    watch.run(_Ends(after=0))
    assert asked.count == 0


class _Crowded:
    """A queue with one more run in it, and the turn of ours."""

    left = 0

    def waiting(self) -> list[str]:
        return ["another"]

    def leave(self) -> None:
        self.left += 1


def test_nobody_grows_while_others_wait_and_the_turn_is_given_back_once_all_ranks_are_placed(
    tiny_job: MakeJob, run: Path
) -> None:
    write_history(run, step_s=1.0, restart_s=20.0)
    both, queue = [machine("a", free=0), machine("b")], _Crowded()
    crowded = cluster(both, queue)
    watch = Watch(Attempt(run, 1), tiny_job(*GROWING), workers=1, cluster=crowded, turn=queue)  # type: ignore[arg-type]
    assert look_for(watch, both, 4) is None
    assert queue.left == 0
    note_place(run, 0, machine="a")
    assert look_for(watch, both, 100) is None
    assert queue.left == 1


def test_a_notice_is_acted_on_at_once_and_told(tiny_job: MakeJob, run: Path) -> None:
    for rank, name in enumerate("ab"):
        note_place(run, rank, machine=name)
    seen = [machine("a"), machine("b", state="leaving"), machine("c", state="leaving")]
    watch = Watch(Attempt(run, 1), tiny_job(*GROWING), workers=2, cluster=cluster(seen))
    watch.run(_Ends(after=1))
    assert watch.wish == room.Wish("preemption", "the machine of rank 1 is taken back")
    assert stop_requested(run)
    lost = watch.blamed(Failure.of(FailureClass.WORKER, "the connection to another rank was lost"))
    assert (lost.kind, lost.cause) == (FailureClass.PREEMPTION, "the machine of rank 1 was taken back")


class _Ends(threading.Event):
    """An event that is set after so many waits, without waiting."""

    def __init__(self, *, after: int) -> None:
        super().__init__()
        self._left = after

    def wait(self, timeout: float | None = None) -> bool:
        self._left -= 1
        return self._left < 0


def test_a_cluster_that_does_not_answer_ends_no_attempt(tiny_job: MakeJob, run: Path) -> None:
    def broken() -> list[Machine]:
        raise ConnectionError("no answer")

    watch = Watch(Attempt(run, 1), tiny_job(*GROWING), workers=1, cluster=Cluster(lambda: ready_view([]), broken))
    watch.run(_Ends(after=4))
    assert watch.wish is None
    assert not stop_requested(run)


def test_ranks_say_where_they_are(run: Path) -> None:
    assert places_of(run) == {}
    for rank, name in enumerate(["a", "b", "a"]):
        note_place(run, rank, machine=name)
    assert places_of(run) == {"a": [0, 2], "b": [1]}


def test_another_number_of_workers_is_an_event(run: Path) -> None:
    for number, workers in enumerate([2, 2, 1], start=1):
        record_size(Attempt(run, number), workers=workers, step=4, why="as many as fit")
        events.record(run, "launched", attempt=number, workers=workers)
    (resized,) = [event for event in events.read_events(run) if event["event"] == "resized"]
    told = {"attempt": 3, "from": 2, "to": 1, "step": 4, "why": "as many as fit"}
    assert resized.items() >= told.items()
