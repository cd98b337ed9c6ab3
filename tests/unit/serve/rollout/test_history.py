"""The file tells which version came before, also after a crash in the middle of a line."""

from __future__ import annotations

import os
from pathlib import Path

from orchestrator.serve.rollout.history import EventKind, History


def history(tmp_path: Path, *events: tuple[EventKind, str]) -> History:
    made = History(tmp_path / "8000.history.jsonl")
    for event, version in events:
        made.add(event, model="m", version=version, export=f"/exports/{version}", settings={})
    return made


def test_nothing_at_first(tmp_path: Path) -> None:
    empty = history(tmp_path)
    assert (empty.lines(), empty.next_version("m"), empty.before("m")) == ([], "v1", None)


def test_the_version_before(tmp_path: Path) -> None:
    kept = history(tmp_path, ("started", "v1"), ("canary", "v2"), ("rolled back", "v2"), ("promoted", "v3"))
    before = kept.before("m")
    assert before is not None
    assert (before["version"], before["export"]) == ("v1", "/exports/v1")
    assert kept.next_version("m") == "v4"
    assert kept.next_version("other") == "v1"


def test_going_back_twice_goes_back_two_versions(tmp_path: Path) -> None:
    kept = history(tmp_path, ("started", "v1"), ("promoted", "v2"), ("promoted", "v3"), ("promoted", "v2"))
    before = kept.before("m")
    assert before is not None
    assert before["version"] == "v1"
    kept.add("promoted", model="m", version="v1", export="/exports/v1")
    assert kept.before("m") is None
    assert kept.next_version("m") == "v4"


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    kept = history(tmp_path, ("started", "v1"), ("promoted", "v2"))
    with kept.path.open("a") as file:
        file.write('{"event": "promo')
    assert [line["version"] for line in kept.lines()] == ["v1", "v2"]
    assert os.stat(kept.path).st_mode & 0o777 == 0o600
