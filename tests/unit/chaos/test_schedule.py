"""Schedules are a function of their seed, and fair to all kinds; durations and names as people write them."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.chaos.schedule import KINDS, Fault, Kind, Report, parse_duration, parse_kinds, schedule
from orchestrator.errors import JobError

some_kinds = st.lists(st.sampled_from(KINDS), min_size=1, unique=True)


@given(some_kinds, st.floats(0.5, 300.0), st.floats(0.5, 3000.0), st.integers())
def test_one_fault_in_each_interval(kinds: list[Kind], every_s: float, for_s: float, seed: int) -> None:
    planned = schedule(kinds, every_s=every_s, for_s=for_s, seed=seed)
    assert planned == schedule(kinds, every_s=every_s, for_s=for_s, seed=seed)
    intervals = math.ceil(for_s / every_s)
    assert intervals - 1 <= len(planned) <= intervals
    for interval, fault in enumerate(planned):
        assert interval * every_s - 0.001 <= fault.at_s < min(for_s, (interval + 0.2) * every_s) + 0.001
    counts = Counter(fault.kind for fault in planned)
    assert set(counts) <= set(kinds)
    if len(planned) >= len(kinds):
        assert max(counts.values()) - min(counts[kind] for kind in kinds) <= 1


def test_another_seed_is_another_drill() -> None:
    orders = {tuple(one.kind for one in schedule(KINDS, every_s=60, for_s=600, seed=seed)) for seed in range(20)}
    assert len(orders) > 15


@pytest.mark.parametrize(
    ("text", "seconds"), [("45s", 45), ("5m", 300), ("1h30m", 5400), ("0.5s", 0.5), ("1.5h", 5400)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text, option="--every") == seconds


@pytest.mark.parametrize("text", ["", "45", "s", "5 m", "-5s", "0s", "1d", "1.s", "5m!"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(JobError, match="--every"):
        parse_duration(text, option="--every")


def test_kinds_by_their_names() -> None:
    assert parse_kinds("kill-worker, flip-bit") == ["kill-worker", "flip-bit"]
    assert parse_kinds(",".join(KINDS)) == list(KINDS)


@pytest.mark.parametrize(
    ("text", "found"), [("kill", "'kill' is no fault"), ("flip-bit,flip-bit", "named twice"), ("", "is no fault")]
)
def test_what_is_no_kind(text: str, found: str) -> None:
    with pytest.raises(JobError, match=found) as caught:
        parse_kinds(text)
    assert "kill-node" in str(caught.value.fix)


def test_the_document_of_a_drill() -> None:
    report = Report(
        faults=[Fault("kill-worker", "2026-01-02T03:04:05.678+00:00", 12, 8.12345), Fault("flip-bit", "2026-01-02")],
        steps_redone=9,
        goodput=0.5,
    )
    document = json.loads(json.dumps(report.to_json()))
    assert document["verdict"] == "pass"
    assert document["faults"] == [
        {"kind": "kill-worker", "at": "2026-01-02T03:04:05.678+00:00", "pid": 12, "recovered_in_s": 8.123},
        {"kind": "flip-bit", "at": "2026-01-02", "pid": None, "recovered_in_s": None},
    ]
    wanted = {"verdict", "faults", "samples_lost", "samples_repeated", "steps_redone", "goodput", "violations"}
    assert wanted <= set(document)
    report.violations.append("x")
    assert report.to_json()["verdict"] == "fail"
