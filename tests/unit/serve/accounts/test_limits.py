"""Limits as arithmetic: what fits, how long to wait, what a client is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.serve.accounts.limits import (
    WINDOW_S,
    Lack,
    Limits,
    Need,
    Standing,
    lack,
    limit_headers,
    refusal_headers,
    span,
    wait_s,
)

NONE = Limits(rpm=None, tpm=None, budget_nano=None)


def standing(requests: int = 0, tokens: int = 0, spent: int = 0, reserved: int = 0) -> Standing:
    return Standing(requests=requests, tokens=tokens, spent_nano=spent, reserved_nano=reserved)


def test_no_limit_unless_given() -> None:
    assert lack(NONE, standing(10**9, 10**12, 10**15), Need(tokens=10**9, cost_nano=10**15)) is None
    assert limit_headers(NONE, standing(5, 5), reset_s=60) == {}


@pytest.mark.parametrize(
    ("limits", "taken", "need", "expected"),
    [
        ((2, None, None), standing(1), (9, 0), None),
        ((2, None, None), standing(2), (9, 0), Lack(requests=1)),
        ((None, 10, None), standing(0, 6), (4, 0), None),
        ((None, 10, None), standing(0, 7), (4, 0), Lack(tokens=1)),
        ((None, 10, None), standing(0, 0), (11, 0), Lack(tokens=11, never=True)),
        ((1, 10, None), standing(1, 10), (3, 0), Lack(requests=1, tokens=3)),
        ((None, None, 100), standing(spent=60, reserved=10), (0, 30), None),
        ((None, None, 100), standing(spent=60, reserved=11), (0, 30), Lack(over_budget=True)),
        ((None, None, 100), standing(spent=71), (0, 30), Lack(over_budget=True, never=True)),
    ],
)
def test_what_is_missing(
    limits: tuple[int | None, ...], taken: Standing, need: tuple[int, int], expected: Lack | None
) -> None:
    bounds = Limits(rpm=limits[0], tpm=limits[1], budget_nano=limits[2])
    assert lack(bounds, taken, Need(tokens=need[0], cost_nano=need[1])) == expected


@given(
    rows=st.lists(st.tuples(st.floats(0, 60), st.integers(0, 50)), min_size=1, max_size=20),
    rpm=st.integers(1, 20),
    tpm=st.integers(50, 500),
    need=st.integers(0, 50),
)
def test_who_waits_as_told_fits_and_nobody_sooner(rows: list[tuple[float, int]], rpm: int, tpm: int, need: int) -> None:
    now = 60.0
    rows = sorted(rows)
    bounds = Limits(rpm=rpm, tpm=tpm, budget_nano=None)

    def missing(at: float) -> Lack | None:
        left = [size for moment, size in rows if moment > at - WINDOW_S]
        return lack(bounds, standing(len(left), sum(left)), Need(tokens=need, cost_nano=0))

    short = missing(now)
    if short is None:
        return
    wait = wait_s(short, iter(rows), now=now)
    assert missing(now + wait + 1e-9) is None
    if wait > 1e-6:
        assert missing(now + wait - 1e-6) is not None


def test_headers_are_those_that_clients_read() -> None:
    bounds = Limits(rpm=60, tpm=1000, budget_nano=5)
    assert limit_headers(bounds, standing(1, 250), reset_s=60) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1m0s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "750",
        "x-ratelimit-reset-tokens": "1m0s",
    }
    assert refusal_headers(2.0001, never=False) == {"Retry-After": "3", "retry-after-ms": "2001"}
    assert refusal_headers(0.0, never=True)["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0ms"), (0.1201, "121ms"), (1, "1s"), (7.42, "7.5s"), (60, "1m0s"), (61.5, "1m1.5s")]
)
def test_spans_as_openai_writes_them(seconds: float, text: str) -> None:
    assert span(seconds) == text
