"""More load never wants fewer replicas; a request that waits wants one more."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from load_fixtures import LOAD

from orchestrator.serve.deployment.scaling import Busy, replicas_for, stats_of

BUSY = st.builds(Busy, tokens=st.floats(0, 3), requests=st.floats(0, 3), wait_s=st.floats(0, 5))


def test_what_a_replica_reports() -> None:
    assert stats_of(LOAD, slots=8) == {"tokens": 0.5, "requests": 0.75, "wait_s": 0.3}


@given(st.lists(BUSY, max_size=5), st.floats(0, 9), st.floats(0, 3))
def test_more_wants_no_fewer(replicas: list[Busy], queued: float, more: float) -> None:
    wanted = replicas_for(replicas, queued=queued)
    assert replicas_for(replicas, queued=queued + more) >= wanted
    busier = [replace(busy, tokens=busy.tokens + more, wait_s=busy.wait_s + more) for busy in replicas]
    assert replicas_for(busier, queued=queued) >= wanted
    assert wanted >= math.ceil(sum(max(b.tokens, b.requests) for b in replicas) - 1e-6)


@pytest.mark.parametrize(
    ("replicas", "queued", "wanted"),
    [
        ([], 0.0, 0),
        ([], 0.1, 1),  # from zero
        ([Busy(tokens=0.0, requests=0.0, wait_s=0.0)] * 2, 0.0, 0),
        ([Busy(tokens=0.1, requests=0.7, wait_s=0.0)], 0.0, 1),
        ([Busy(tokens=0.1, requests=0.8, wait_s=0.0)], 0.0, 2),
        ([Busy(tokens=1.5, requests=0.1, wait_s=0.0)], 0.0, 3),  # few requests, long ones
        ([Busy(tokens=0.1, requests=0.1, wait_s=0.6)], 0.0, 2),
        ([Busy(tokens=0.5, requests=0.1, wait_s=0.0)] * 2, 1.0, 3),
    ],
)
def test_numbers(replicas: list[Busy], queued: float, wanted: int) -> None:
    assert replicas_for(replicas, queued=queued) == wanted
