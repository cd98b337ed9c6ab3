"""The policies of machines that come and go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cluster.view import Machine
from orchestrator.errors import CapacityError, TrainError
from orchestrator.job_train import Workers
from orchestrator.plan import Node
from orchestrator.train.driver.elastic import STABLE_S, Offer, Pace, blamed, leaving, no_room, pays, room, settled
from orchestrator.train.recovery.failures import Failure, FailureClass

STATES = st.sampled_from(["ready", "leaving", "silent"])
COUNTS = st.integers(1, 64)


def machine(name: str, *, cpus: float = 1.0, free: float = 0.0, state: str = "ready") -> Machine:
    return Machine(name, Node(cpus=cpus), Node(cpus=free), state)  # type: ignore[arg-type]


def offers(numbers: Sequence[int], *, every_s: float = 2.0) -> list[Offer]:
    return [Offer(i * every_s, number) for i, number in enumerate(numbers)]


@given(free=st.lists(st.integers(0, 9), max_size=6), held=st.integers(0, 9), most=COUNTS, cpus=st.integers(1, 3))
def test_room_is_what_the_run_has_and_what_fits_beside(free: list[int], held: int, most: int, cpus: int) -> None:
    own = machine("own", cpus=99, free=0)
    others = [machine(f"other-{i}", cpus=99, free=count) for i, count in enumerate(free)]
    asked = Workers(min=1, max=most, cpus=cpus)
    assert room(asked, [own, *others], {"own": range(held)}) == min(most, held + sum(n // cpus for n in free))


@pytest.mark.parametrize("state", ["leaving", "silent"])
def test_no_room_on_machines_that_go_or_are_gone(state: str) -> None:
    seen = [machine("a", free=4, state=state), machine("b", free=1)]
    assert room(Workers(min=1, max=8), seen, {"a": [0, 1], "b": [2]}) == 2


@given(numbers=st.lists(st.integers(1, 4), min_size=1, max_size=40), workers=st.integers(1, 4))
def test_more_room_counts_when_all_looks_of_ten_seconds_agree(numbers: list[int], workers: int) -> None:
    looks = offers(numbers)
    recent = numbers[-6:]  # 10 s, every 2 s
    found = settled(looks, now_s=looks[-1].at_s, workers=workers)
    expected = recent[0] if len(numbers) >= 6 and len(set(recent)) == 1 and recent[0] > workers else None
    assert found == expected


@given(st.integers(2, 6), st.integers(2, 100))
def test_an_offer_that_flaps_is_never_taken(period: int, looks: int) -> None:
    """Whatever is seen for less than ten seconds at a time."""
    flapping = offers([1 + (i // (period - 1)) % 2 for i in range(looks)], every_s=STABLE_S / (period + 1))
    for last in range(1, looks + 1):
        assert settled(flapping[:last], now_s=flapping[last - 1].at_s, workers=1) is None


def test_two_looks_are_no_proof_however_far_apart() -> None:
    assert settled([Offer(0.0, 2), Offer(30.0, 2)], now_s=30.0, workers=1) is None


@given(
    left=st.integers(0, 10**6), step_s=st.floats(1e-3, 100), restart_s=st.floats(0.1, 1e4), samples=COUNTS, one=COUNTS
)
def test_a_restart_is_made_where_it_is_won_back(
    left: int, step_s: float, restart_s: float, samples: int, one: int
) -> None:
    pace = Pace(left, step_s, restart_s)
    assert not pays(pace, samples=samples, workers=one, more=one)
    twice = pays(pace, samples=2 * samples * one, workers=one, more=2 * one)  # each share is halved
    assert twice == (left * step_s * 0.25 > restart_s)


def test_workers_that_make_no_share_smaller_are_not_worth_a_restart() -> None:
    assert not pays(Pace(10**6, 1.0, 1.0), samples=8, workers=4, more=5)
    assert pays(Pace(10**6, 1.0, 1.0), samples=8, workers=4, more=8)


@given(st.dictionaries(st.sampled_from("abcd"), STATES), st.sets(st.sampled_from("abcd"), min_size=1))
def test_a_notice_counts_on_machines_of_the_run(states: Mapping[str, str], own: set[str]) -> None:
    seen = [machine(name, state=state) for name, state in states.items()]
    places = {name: [i] for i, name in enumerate(sorted(own))}
    assert set(leaving(seen, places)) == {name for name in own if states.get(name) == "leaving"}


@given(
    st.dictionaries(st.sampled_from("abcd"), STATES),
    st.sets(st.sampled_from("abcd"), min_size=1),
    st.sets(st.sampled_from("abcd")),
    st.sampled_from(FailureClass),
)
def test_the_loss_of_a_machine_is_told_from_its_consequences(
    states: Mapping[str, str], own: set[str], told: set[str], kind: FailureClass
) -> None:
    seen = [machine(name, state=state) for name, state in states.items()]
    failure = Failure.of(kind, "the connection to another rank was lost")
    found = blamed(failure, seen, {name: [0] for name in own}, told=told)
    gone = {name for name in own if states.get(name, "gone") != "ready"}
    taken = {name for name in gone if states.get(name) == "leaving" or name in told}
    may_be = kind in (FailureClass.WORKER, FailureClass.HANG, FailureClass.NODE, FailureClass.CONTROL_PLANE)
    expected = FailureClass.PREEMPTION if taken else FailureClass.NODE if gone else kind
    assert found.kind == (expected if may_be else kind)


def test_who_is_blamed_is_named_and_our_own_errors_stay() -> None:
    lost = blamed(Failure.of(FailureClass.WORKER, "x"), [machine("b")], {"a": [2, 0], "b": [1]}, told=[])
    assert lost.cause == "the machine of ranks 0, 2 was lost"
    own = Failure(FailureClass.WORKER, "replicas differ", "look", TrainError("replicas differ"))
    assert blamed(own, [], {"a": [0]}, told=[]) is own


def test_no_room_ends_the_run_with_what_to_do() -> None:
    failure = no_room(CapacityError("2 of 4 fit after 600 s", fix="more machines"))
    assert (failure.kind, failure.cause, failure.fix, failure.retriable) == (
        FailureClass.CONTROL_PLANE,
        "2 of 4 fit after 600 s",
        "more machines",
        False,
    )
