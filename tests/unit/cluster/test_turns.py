"""Who may take room when several runs wait for one cluster."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cluster.turns import LAPSE_S, Book, Waiter, in_order, left_by, may_try, needs, told
from orchestrator.cluster.view import Machine, ready_view
from orchestrator.job_train import Workers
from orchestrator.plan import Node
from orchestrator.plan.capacity import workers_that_fit


def machine(name: str, *, cpus: float = 4, gpus: float = 0, free_cpus: float = 4, free_gpus: float = 0) -> Machine:
    return Machine(name, Node(cpus=cpus, gpus=gpus), Node(cpus=free_cpus, gpus=free_gpus))


def waiter(name: str, *, least: int = 1, most: int = 1, gpus: int = 0, **more: object) -> Waiter:
    return Waiter(name, name, Workers(min=least, max=most, gpus=gpus), **more)  # type: ignore[arg-type]


def test_what_starts_again_goes_first_then_priority_then_who_waits_longest() -> None:
    late, early = waiter("late", waited_s=1), waiter("early", waited_s=9)
    urgent, again = waiter("urgent", priority=5), waiter("again", begun=True, priority=-5)
    assert [one.name for one in in_order([late, early, urgent, again])] == ["again", "urgent", "early", "late"]


def test_a_waiter_travels_as_plain_data() -> None:
    one = waiter("a", least=2, most=4, gpus=1, priority=3, begun=True, waited_s=2.5)
    assert Waiter.from_json(one.as_json()) == one


def test_a_book_keeps_the_order_of_arrival_and_forgets_who_falls_silent() -> None:
    book = Book()
    book.renew(waiter("first"), now_s=0)
    assert [one.name for one in book.renew(waiter("second"), now_s=1)] == ["first", "second"]
    for now_s in range(2, 12):
        book.renew(waiter("second"), now_s=now_s)
    assert [one.waited_s for one in book.waiting(now_s=12)] == [12, 11]
    assert [one.name for one in book.waiting(now_s=LAPSE_S + 0.5)] == ["second"]
    book.leave("second")
    book.leave("nobody")
    assert book.waiting(now_s=LAPSE_S + 0.5) == []


def test_who_takes_room_stands_before_all_who_come_and_takes_it_only_past_those_it_knows() -> None:
    book = Book()
    book.renew(waiter("low"), now_s=0)
    book.renew(waiter("high", priority=9), now_s=1)
    assert not book.take("low", considered=[], now_s=1)  # it has not heard of the other yet
    assert book.take("high", considered=[], now_s=1)
    book.renew(waiter("again", begun=True, priority=99), now_s=2)
    book.renew(waiter("high", priority=9), now_s=3)  # what it says of itself takes nothing back
    assert [one.name for one in book.waiting(now_s=3)] == ["high", "again", "low"]
    assert not book.take("again", considered=[], now_s=3)
    assert book.take("again", considered=["high"], now_s=3)
    assert not book.take("nobody", considered=["high", "again", "low"], now_s=3)


def test_a_book_that_was_made_anew_takes_each_at_its_word() -> None:
    book = Book()
    book.renew(waiter("b", waited_s=20), now_s=100)
    assert [one.name for one in book.renew(waiter("a", waited_s=40), now_s=101)] == ["a", "b"]


def test_the_first_may_always_try_and_a_gang_behind_it_does_not_overtake() -> None:
    half_free = [machine("m", cpus=4, free_cpus=2)]
    large, small = waiter("large", least=4, most=4), waiter("small")
    assert may_try(large, [], half_free)
    assert not may_try(small, [large], half_free)  # what is free waits for the larger one


def test_room_that_nobody_before_can_use_is_no_queue_for() -> None:
    machines = [machine("gpu", gpus=8, free_gpus=0), machine("cpu")]
    training, preparing = waiter("training", least=8, most=8, gpus=1), waiter("preparing", least=2, most=2)
    assert may_try(preparing, [training], machines)
    assert not may_try(waiter("other", gpus=1), [training], machines)


def test_workers_without_gpus_are_thought_of_away_from_gpus() -> None:
    machines = [machine("gpu", gpus=4, free_gpus=4), machine("cpu")]
    left = left_by([waiter("cpus", least=4, most=4)], machines)
    assert [(one.free.cpus, one.free.gpus) for one in left] == [(4, 4), (0, 0)]


def test_what_is_said() -> None:
    small, large = waiter("small"), waiter("large", least=4, most=4, gpus=2)
    free = ready_view([machine("m", free_cpus=1)], free=True)
    assert told(large, [small, large, waiter("x")], free, asked_for=False) == (
        "2nd of 3, waits for 8 GPUs; small is before it"
    )
    assert told(small, [small], free, asked_for=True) == (
        "1st of 1, waits for 1 CPU; 1 CPUs and 0 GPUs on 1 node(s) are free, more machines are asked for"
    )
    assert needs(Workers(min=3, max=3, cpus=2)) == "6 CPUs"


WAITERS = st.builds(
    lambda least, more, cpus, gpus: Waiter("w", "w", Workers(min=least, max=least + more, cpus=cpus, gpus=gpus)),
    st.integers(1, 4), st.integers(0, 3), st.integers(1, 3), st.integers(0, 2),
)  # fmt: skip
MACHINES = st.lists(
    st.tuples(st.integers(0, 8), st.integers(0, 4)).map(
        lambda free: machine("m", cpus=8, gpus=4, free_cpus=free[0], free_gpus=free[1])
    ),
    min_size=1,
    max_size=4,
)


@given(ahead=st.lists(WAITERS, max_size=3), me=WAITERS, machines=MACHINES)
def test_whoever_goes_ahead_leaves_the_first_all_that_it_could_take(
    ahead: list[Waiter], me: Waiter, machines: list[Machine]
) -> None:
    left = left_by(ahead, machines)
    assert all(0 <= after.free.cpus <= before.free.cpus for before, after in zip(machines, left, strict=True))
    assert all(0 <= after.free.gpus <= before.free.gpus for before, after in zip(machines, left, strict=True))
    if ahead and may_try(me, ahead, machines):
        first = ahead[0].workers
        could = workers_that_fit(first, ready_view(machines, free=True))
        after_me = left_by([me], left)
        taken_by_others = left_by(ahead[1:], machines)
        assert workers_that_fit(me.workers, ready_view(left, free=True)) >= me.workers.min
        assert sum(one.free.cpus for one in after_me) <= sum(one.free.cpus for one in taken_by_others)
        assert sum(b.free.cpus - a.free.cpus for b, a in zip(machines, left, strict=True)) >= could * first.cpus
