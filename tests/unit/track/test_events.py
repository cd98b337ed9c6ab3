"""events.jsonl: what was recorded is read, a torn line is left out and spoils no other."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.track.events import FILE, iso_time, moment, read_events, record


def test_events_are_read_in_their_order(tmp_path: Path) -> None:
    assert list(read_events(tmp_path)) == []
    record(tmp_path, "started", step=0, attempt=1)
    record(tmp_path, "checkpoint", step=5, path="größer")
    first, second = read_events(tmp_path)
    assert (first["event"], first["attempt"]) == ("started", 1)
    assert (second["event"], second["path"]) == ("checkpoint", "größer")
    assert moment(first["time"]) <= moment(second["time"])


@given(cut=st.integers(2, 50))
def test_a_torn_line_spoils_only_itself(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    run = tmp_path_factory.mktemp("torn")
    record(run, "one")
    record(run, "two")
    whole = (run / FILE).read_bytes()
    (run / FILE).write_bytes(whole[:-cut])
    record(run, "three")
    assert [event["event"] for event in read_events(run)] == ["one", "three"]


@pytest.mark.parametrize("raw", [b"[]\n", b"1\n", b"\xff\n", b'{"event": "x"}\n', b'{"event": 1, "time": ""}\n'])
def test_what_is_no_event_is_left_out(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / FILE).write_bytes(raw)
    assert list(read_events(tmp_path)) == []


@given(at=st.integers(0, 4 * 10**12).map(lambda ms: ms / 1000))
def test_a_moment_is_told_to_the_millisecond(at: float) -> None:
    assert moment(iso_time(at)) == pytest.approx(at, abs=0.0011)
    assert datetime.fromisoformat(iso_time(at)).utcoffset() is not None
