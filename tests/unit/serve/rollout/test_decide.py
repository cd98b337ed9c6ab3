"""A canary that is surely worse goes, one that is as good stays, whatever the numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.serve.deployment.observe import Seen
from orchestrator.serve.rollout.decide import Thumbs, decide, least_rate

GOOD = Seen(requests=50, errors=0, first_token_s=0.05, token_s=0.01)
TIMES = st.one_of(st.none(), st.floats(1e-4, 60.0))


@st.composite
def seen(draw: st.DrawFn) -> Seen:
    requests = draw(st.integers(0, 3000))
    errors = draw(st.integers(0, requests))
    silent = draw(st.floats(0.0, 100.0))
    refused = draw(st.integers(0, 3000))
    times = {"first_token_s": draw(TIMES), "token_s": draw(TIMES)}
    return Seen(requests=requests, errors=errors, refused=refused, silent_s=silent, **times)


@given(seen(), seen(), st.floats(0.0, 300.0), st.floats(0.0, 300.0))
def test_it_waits_only_before_the_end(new: Seen, old: Seen, elapsed_s: float, for_s: float) -> None:
    verdict = decide(new, old, elapsed_s=elapsed_s, for_s=for_s).verdict
    assert verdict in ("roll back", "wait" if elapsed_s < for_s else "promote")


@given(seen())
def test_a_version_like_the_current_one_is_promoted(old: Seen) -> None:
    same = replace(old, silent_s=0.0)
    assert decide(same, old, elapsed_s=9.0, for_s=9.0).verdict == "promote"


@given(seen(), seen(), st.integers(1, 50), st.floats(1.0, 10.0), st.floats(1.0, 10.0))
def test_worse_never_helps(new: Seen, old: Seen, errors: int, slower: float, stuck_s: float) -> None:
    """If a version goes, one with more failures of as many requests, slower and more silent goes too."""
    if decide(new, old, elapsed_s=1.0, for_s=9.0).verdict != "roll back":
        return
    worse = replace(
        new,
        errors=min(new.requests, new.errors + errors),
        refused=new.refused + errors,
        first_token_s=None if new.first_token_s is None else new.first_token_s * slower,
        token_s=None if new.token_s is None else new.token_s * slower,
        silent_s=new.silent_s + stuck_s,
    )
    assert decide(worse, old, elapsed_s=1.0, for_s=9.0).verdict == "roll back"


@given(st.integers(1, 2000), st.integers(1, 2000))
def test_the_least_rate_is_below_the_rate(errors: int, others: int) -> None:
    requests = errors + others
    assert 0.0 <= least_rate(errors, requests) < errors / requests
    assert least_rate(errors * 100, requests * 100) > least_rate(errors, requests)  # more of the same is surer


def test_the_reasons_are_for_people() -> None:
    def told(new: Seen, old: Seen = GOOD) -> str:
        decision = decide(new, old, elapsed_s=1.0, for_s=60.0)
        return f"{decision.verdict}: {decision.reason}"

    assert told(replace(GOOD, errors=5)) == "roll back: 5 of 50 requests failed, against 0 of 50 before"
    assert told(replace(GOOD, first_token_s=0.5)) == (
        "roll back: the first token takes 500 ms at the median, against 50 ms before"
    )
    assert told(replace(GOOD, token_s=0.1)) == "roll back: a token takes 100 ms at the median, against 10 ms before"
    assert told(replace(GOOD, silent_s=16.0)) == "roll back: a request has waited 16.0 s for its first token"
    assert told(replace(GOOD, errors=1)) == "wait: 50 requests, 1 failed"
    assert told(Seen()) == "wait: 0 requests, 0 failed"
    assert decide(Seen(), GOOD, elapsed_s=60.0, for_s=60.0).reason == "no request came in 60 s; it has proven itself"


def test_one_failure_is_not_enough_and_what_the_current_one_does_too_is_not_held_against_it() -> None:
    assert decide(Seen(requests=1, errors=1), GOOD, elapsed_s=1.0, for_s=9.0).verdict == "wait"
    assert decide(Seen(requests=2, errors=2), GOOD, elapsed_s=1.0, for_s=9.0).verdict == "roll back"
    both = Seen(requests=100, errors=30)
    assert decide(both, both, elapsed_s=9.0, for_s=9.0).verdict == "promote"


def rated(new: Thumbs, old: Thumbs) -> str:
    return decide(GOOD, GOOD, elapsed_s=1.0, for_s=9.0, new_rated=new, old_rated=old).verdict


@pytest.mark.parametrize(
    ("new", "old", "verdict"),
    [
        ((0, 0), (0, 0), "wait"),
        ((0, 40), (0, 0), "wait"),  # nothing to be worse than
        ((0, 3), (3, 0), "wait"),  # too few to be sure
        ((0, 8), (8, 0), "roll back"),
        ((1, 9), (90, 10), "roll back"),
        ((5, 5), (60, 40), "wait"),
        ((500, 500), (600, 400), "roll back"),  # a small difference, surely
        ((10, 90), (10, 90), "wait"),  # disliked, and no more than before
        ((600, 400), (500, 500), "wait"),
    ],
)
def test_a_version_that_is_surely_rated_worse_goes(new: tuple[int, int], old: tuple[int, int], verdict: str) -> None:
    assert rated(Thumbs(up=new[0], down=new[1]), Thumbs(up=old[0], down=old[1])) == verdict


THUMBS = st.builds(Thumbs, up=st.integers(0, 2000), down=st.integers(0, 2000))


@given(THUMBS, THUMBS, st.integers(1, 500))
def test_worse_ratings_never_help(new: Thumbs, old: Thumbs, more: int) -> None:
    if rated(new, old) == "roll back":
        turned = min(new.up, more)
        assert rated(Thumbs(up=new.up - turned, down=new.down + turned), old) == "roll back"
        assert rated(old, new) == "wait"


def test_ratings_are_told() -> None:
    def told(new: Thumbs, old: Thumbs) -> str:
        return decide(GOOD, GOOD, elapsed_s=1.0, for_s=9.0, new_rated=new, old_rated=old).reason

    assert told(Thumbs(up=1, down=9), Thumbs(up=90, down=10)) == (
        "1 of 10 answers were rated up, against 90 of 100 before"
    )
    assert told(Thumbs(up=7, down=1), Thumbs(up=90, down=10)) == "50 requests, 0 failed, 7 of 8 rated up"


@pytest.mark.parametrize(
    ("requests", "refused", "before", "goes"),
    [(40, 1, 0, False), (100, 10, 0, False), (60, 40, 0, True), (3, 9, 0, True), (60, 40, 400, False)],
)
def test_one_with_surely_less_room_goes(requests: int, refused: int, before: int, goes: bool) -> None:
    new = replace(GOOD, requests=requests, refused=refused)
    decision = decide(new, replace(GOOD, requests=600, refused=before), elapsed_s=5.0, for_s=9.0)
    assert decision.verdict == ("roll back" if goes else "wait")
    came = requests + refused
    told = f"it had no room for {refused} of {came} requests, against" if goes else f"it had no room for {refused} more"
    assert told in decision.reason
