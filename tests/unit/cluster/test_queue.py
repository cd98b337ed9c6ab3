"""A place in a queue that answers, falls silent, and comes back."""

from __future__ import annotations

import pytest

from orchestrator.cluster import queue
from orchestrator.cluster.queue import Turn
from orchestrator.cluster.turns import LAPSE_S, Book, Waiter
from orchestrator.job_train import Workers


class _Desk:
    """A queue of this process, which can be struck dumb."""

    def __init__(self) -> None:
        self.book, self.dumb, self.now_s = Book(), False, 0.0
        self.forgotten: list[str] = []

    def renew(self, waiter: Waiter) -> list[Waiter] | None:
        return None if self.dumb else self.book.renew(waiter, now_s=self.now_s)

    def take(self, waiter_id: str, considered: list[str]) -> bool | None:
        return None if self.dumb else self.book.take(waiter_id, considered=considered, now_s=self.now_s)

    def forget(self, waiter_id: str) -> None:
        self.forgotten.append(waiter_id)
        self.book.leave(waiter_id)


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> _Desk:
    found = _Desk()
    monkeypatch.setattr(queue.time, "monotonic", lambda: found.now_s)
    monkeypatch.setattr(queue, "_RENEW_S", 3600.0)  # the test renews
    monkeypatch.setattr(queue, "_ANSWER_S", 3600.0)
    return found


def turn_of(desk: _Desk, name: str) -> Turn:
    return Turn(desk, Waiter(name, name, Workers(min=1, max=1)))  # type: ignore[arg-type]


def test_two_commands_of_one_name_are_two_waiters(desk: _Desk) -> None:
    first = turn_of(desk, "same")
    desk.now_s = 1.0
    second = turn_of(desk, "same")
    assert [one.id for one in second.waiting() or ()] == [first.waiter.id, second.waiter.id]
    first.leave()
    first.leave()
    assert desk.forgotten == [first.waiter.id]
    second._renew()
    assert [one.id for one in second.waiting() or ()] == [second.waiter.id]
    second.leave()


def test_the_turn_is_kept_by_a_queue_that_was_made_anew(desk: _Desk) -> None:
    low = turn_of(desk, "low")
    assert low.take([])
    desk.book = Book()
    desk.now_s = 1.0
    high = Turn(desk, Waiter("high", "high", Workers(min=1, max=1), priority=9))  # type: ignore[arg-type]
    low._renew()
    high._renew()
    assert [one.name for one in high.waiting() or ()] == ["low", "high"]
    assert not high.take([])
    assert high.take([low.waiter])
    desk.dumb = True
    assert not low.take([])  # without an answer nobody knows
    desk.now_s = 1 + 2 * LAPSE_S + 1
    assert low.take([])
    low.leave()
    high.leave()


def test_an_answer_holds_for_a_while_then_nothing_is_known_then_nobody_is_waited_for(desk: _Desk) -> None:
    before = turn_of(desk, "before")
    desk.now_s = 1.0
    turn = turn_of(desk, "mine")
    desk.dumb, desk.now_s = True, LAPSE_S
    turn._renew()
    assert len(turn.waiting() or ()) == 2
    desk.now_s = LAPSE_S + 2
    assert turn.waiting() is None
    desk.now_s = 2 * LAPSE_S + 2
    assert turn.waiting() == [turn.waiter]
    desk.dumb = False
    before._renew()
    turn._renew()
    assert [one.name for one in turn.waiting() or ()] == ["before", "mine"]
    before.leave()
    turn.leave()


def test_a_queue_that_was_made_anew_hears_how_long_each_has_waited(desk: _Desk) -> None:
    early = turn_of(desk, "early")
    desk.now_s = 5.0
    late = turn_of(desk, "late")
    desk.now_s, desk.book = 30.0, Book()
    late._renew()
    early._renew()
    assert [(one.name, one.waited_s) for one in early.waiting() or ()] == [("early", 30.0), ("late", 25.0)]
    early.leave()
    late.leave()
