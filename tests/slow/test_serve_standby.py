"""Processes that stand by in a service: one that waited comes in the place of a replica or a gateway that died."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from export_fixtures import tiny_export
from serve_fixtures import Live, command_of, live_service, question, wait_until

from orchestrator.cluster import preload
from orchestrator.job import Serve
from orchestrator.serve.host.processes import marked

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]
PARTS = ("replica", "gateway")
LIMIT_S = 90.0


@pytest.fixture(params=[True, False], ids=["standby", "none"])
def live(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with live_service(tiny_export(tmp_path / "served"), Serve(standby=request.param)) as live:
        yield live


def waiting(live: Live, part: str) -> set[int]:
    """Processes of Ray's that have no work, in the environment of a part, once they have imported what it names."""
    wanted = f"{preload.VARIABLE}=ray.serve._private.replica,orchestrator.serve.deployment.{part}".encode()
    found = set()
    for pid in marked(live.mark):
        with contextlib.suppress(OSError):
            is_of_part = wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            has_imported = part != "replica" or b"libtorch_python" in Path(f"/proc/{pid}/maps").read_bytes()
            if is_of_part and has_imported and command_of(pid).startswith(b"ray::IDLE"):
                found.add(pid)
    return found


def wait_for_one(live: Live, part: str) -> set[int]:
    wait_until(lambda: bool(waiting(live, part)), LIMIT_S, f"a process for the next {part}")
    return waiting(live, part)


def replaced(live: Live, part: str) -> tuple[set[int], float]:
    """Kill a part: the processes that came in its place, and the seconds until a request was answered again."""
    before = live.kill(part)
    began = time.monotonic()
    wait_until(lambda: answers(live), LIMIT_S, "an answer")
    took_s = time.monotonic() - began
    wait_until(lambda: live.pids(part) not in ([], [before]), LIMIT_S, f"another {part}")
    return set(live.pids(part)) - {before}, took_s


def answers(live: Live) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.post(live.completions, json=question(1), timeout=LIMIT_S).status_code == httpx.codes.OK
    return False


def test_one_that_waited_comes_in_the_place_of_one_that_died(
    live: Live, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    stands_by = request.node.callspec.params["live"]
    for part in PARTS:
        ready = wait_for_one(live, part) if stands_by else set()
        came, took_s = replaced(live, part)
        with capsys.disabled():
            print(f"{part}: {took_s:.2f} s, {'with' if stands_by else 'without'} one that stands by")
        if stands_by:
            assert came <= ready
            wait_for_one(live, part)  # and another one for the next time
        else:
            assert not waiting(live, part)
