"""Waiting for room and for one's turn: on machines and a queue that are made up."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from orchestrator.cluster.bounds import Bounds, NodeType
from orchestrator.cluster.turns import Waiter
from orchestrator.cluster.view import Machine, ready_view
from orchestrator.errors import CapacityError
from orchestrator.job import JobSpec, Workers
from orchestrator.plan import Node
from orchestrator.train.driver import waiting
from orchestrator.train.driver.waiting import Cluster, find_room, waiter_of

MakeJob = Callable[..., JobSpec]


def machine(name: str, *, free: float = 1.0, state: str = "ready", cpus: float = 1.0) -> Machine:
    return Machine(name, Node(cpus=cpus), Node(cpus=free), state)  # type: ignore[arg-type]


class _Queue:
    """An autoscaler's bounds."""

    def __init__(self, bounds: Bounds | None) -> None:
        self._bounds = bounds

    def bounds(self) -> Bounds | None:
        return self._bounds


class _Turn:
    """A place in a queue, look by look; the last one for good."""

    def __init__(self, job: JobSpec, *before: Sequence[Waiter] | None) -> None:
        self.waiter, self._before = waiter_of(job, "me"), list(before)

    def waiting(self) -> list[Waiter] | None:
        now = self._before.pop(0) if len(self._before) > 1 else self._before[0]
        return None if now is None else [*now, self.waiter]

    def take(self, considered: Sequence[Waiter]) -> bool:
        """Not at the first time: somebody has come."""
        self.asked = [*getattr(self, "asked", []), [one.name for one in considered]]
        return len(self.asked) > 1


def cluster(*looks: list[Machine], bounds: Bounds | None = None) -> Cluster:
    """What is seen look by look; the last one for good."""
    left = list(looks)

    def look() -> list[Machine]:
        return left.pop(0) if len(left) > 1 else left[0]

    return Cluster(lambda: ready_view(look()), look, _Queue(bounds))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that pass by sleeping alone."""
    now = [0.0]
    monkeypatch.setattr(waiting.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(waiting.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return now


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """What an autoscaler was asked for, in the place of Ray's placement groups; None: withdrawn."""
    told: list[int | None] = []

    class _Demand:
        def ask(self, workers: Workers, count: int) -> None:
            if told[-1:] != [count]:
                told.append(count)

        def come(self) -> bool:
            return False

        def withdraw(self) -> None:
            told.append(None)

    monkeypatch.setattr(waiting, "Demand", _Demand)
    return told


def test_a_ray_of_our_own_is_not_asked(tiny_job: MakeJob) -> None:
    view = ready_view([machine("a")])
    assert find_room(tiny_job(), Cluster(lambda: view, lambda: None)).view is view


def test_what_a_group_has_just_left_is_waited_for(tiny_job: MakeJob) -> None:
    """Ray tells with a delay that the CPUs of the last attempt are free."""
    held, free = [machine("a", free=0), machine("b")], [machine("a"), machine("b")]
    found = find_room(tiny_job("train.workers={min: 1, max: 2}"), cluster(held, held, free))
    assert found.view == ready_view(free)


def test_what_others_hold_is_left_to_them(tiny_job: MakeJob) -> None:
    held = [machine("a", free=0), machine("b"), machine("c", state="silent")]
    found = find_room(tiny_job("train.workers={min: 1, max: 2}"), cluster(held))
    assert [node.cpus for node in found.view.nodes] == [0, 1]
    assert found.avoid == ["c"]


def test_machines_that_come_back_are_waited_for(tiny_job: MakeJob, capsys: pytest.CaptureFixture[str]) -> None:
    few, enough = [machine("a")], [machine("a"), machine("b")]
    found = find_room(tiny_job("train.workers={min: 2, max: 2, wait_s: 60}"), cluster(*[few] * 40, enough))
    assert found.view == ready_view(enough)
    assert capsys.readouterr().err.count("waiting up to 60 s for room") == 1


def test_the_wait_for_missing_machines_has_an_end(tiny_job: MakeJob) -> None:
    few = [machine("a"), machine("b", state="leaving")]
    with pytest.raises(CapacityError, match=r"asks for at least 2 worker\(s\).* after 60 s") as raised:
        find_room(tiny_job("train.workers={min: 2, max: 2, wait_s: 60}"), cluster(few))
    assert "train.workers.wait_s" in (raised.value.fix or "")


def test_the_wait_for_what_others_hold_has_none(
    tiny_job: MakeJob, clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    held, free = [machine("a"), machine("b", free=0)], [machine("a"), machine("b")]
    find_room(tiny_job("train.workers={min: 2, max: 2, wait_s: 60}"), cluster(*[held] * 1000, free))
    assert clock[0] >= 499
    assert capsys.readouterr().err.count("1st of 1, waits for 2 CPUs; 1 CPUs and 0 GPUs on 2 node(s) are free") == 1


def test_a_run_waits_for_its_turn_and_says_once_who_is_before_it(
    tiny_job: MakeJob, clock: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIPWAY_STATE_LINES", "1")
    job = tiny_job("train.workers={min: 2, max: 2}")
    x, y = waiter_of(job, "x"), waiter_of(job, "y")
    turn = _Turn(job, None, *[[x, y]] * 20, *[[y]] * 20, [])
    found = find_room(job, cluster([machine("a"), machine("b")]), turn)  # type: ignore[arg-type]
    assert len(found.view.nodes) == 2
    assert clock[0] == 21.0
    assert turn.asked == [[], []]
    lines = capsys.readouterr().err.splitlines()
    said = [line.split("waiting: ")[1] for line in lines if "waiting: " in line]
    assert said == ["3rd of 3, waits for 2 CPUs; y is before it", "2nd of 2, waits for 2 CPUs; y is before it"]
    places = [line for line in lines if line.startswith("slipway-state ") and '"place"' in line]
    assert ['"place": 3' in places[0], '"place": 2' in places[1]] == [True, True]
    assert '"state": "training"' in lines[-1]


def test_a_run_that_goes_ahead_stays_off_what_those_before_it_could_use(tiny_job: MakeJob) -> None:
    seen = [
        Machine("gpu", Node(cpus=2, gpus=2), Node(cpus=1, gpus=1)),
        Machine("cpu", Node(cpus=2), Node(cpus=2)),
        Machine("silent", Node(cpus=2), Node(cpus=2), "silent"),
    ]
    before = waiter_of(tiny_job("train.workers={min: 2, max: 2, gpus: 1}"), "before")
    job = tiny_job("train.workers={min: 2, max: 2}")
    found = find_room(job, cluster(seen), _Turn(job, [before]))  # type: ignore[arg-type]
    assert found.avoid == ["silent", "gpu"]


def test_an_autoscaler_is_asked_for_all_that_it_may_start_and_then_for_the_least(
    tiny_job: MakeJob, asked: list[int | None], clock: list[float]
) -> None:
    bounds = Bounds([NodeType("w", Node(cpus=1), 5)], 3)
    head, worker = machine("head", cpus=2.5, free=2.5), machine("w")
    job = tiny_job("train.workers={min: 4, max: 8, wait_s: 1}")
    grown = [head, worker, worker]
    found = find_room(job, cluster(*[[head]] * 20, *[grown] * 1000, bounds=bounds))
    assert (len(found.view.nodes), asked) == (3, [5, None])  # nothing more came within the limit
    assert 299 <= clock[0] <= 310


def test_a_group_that_is_complete_takes_its_room_at_once(
    tiny_job: MakeJob, asked: list[int | None], clock: list[float]
) -> None:
    bounds = Bounds([NodeType("w", Node(cpus=1), 5)], 3)
    head, worker = machine("head"), machine("w")
    find_room(tiny_job("train.workers={min: 4}"), cluster(*[[head]] * 9, [head, *[worker] * 3], bounds=bounds))
    assert (asked, clock[0]) == ([4, None], 4.5)


def test_an_autoscaler_whose_bounds_nobody_knows_is_asked_and_waited_for_as_for_machines(
    tiny_job: MakeJob, asked: list[int | None]
) -> None:
    with pytest.raises(CapacityError, match="after 400 s"):
        find_room(
            tiny_job("train.workers={min: 2, max: 4, wait_s: 400}"), cluster([machine("a")], bounds=Bounds(known=False))
        )
    assert asked == [4, 2, None]
