"""Replicas come with the load and go after it, down to none, and too much load is refused: nobody else notices."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest
from export_fixtures import TINY, tiny_export
from serve_fixtures import Clients, Live, live_service, question, wait_until

from model.config import ModelConfig
from orchestrator.job import Replicas, Serve

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SLOTS = 4
LONG = 1500
"""Tokens: a second or so."""


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    long = ModelConfig(**{**TINY.to_dict(), "context": 2048})
    return tiny_export(tmp_path_factory.mktemp("long"), config=long)


def test_a_second_replica_comes_with_a_load_step_and_goes_after_it(export: Path) -> None:
    settings = Serve(replicas=Replicas(min=1, max=2), max_ongoing_requests=SLOTS)
    with live_service(export, settings) as live, Clients(live.completions, 1) as steady:
        steady.wait_answers(5)
        with Clients(live.completions, 12, max_tokens=LONG) as step:
            # More than one replica works on at once: the second one makes tokens.
            first_token_s = wait_until(lambda: live.metric("slipway_engine_running") > SLOTS, 60, "a second replica")
            step.wait_answers(24)
            assert len(live.pids("replica")) == 2
        gone_s = wait_until(lambda: len(live.pids("replica")) == 1, 120, "one replica")
        steady.wait_answers(20)
    print(f"the second replica's first token {first_token_s:.1f} s after the load step; it went after {gone_s:.1f} s")
    assert (step.failures, steady.failures) == ([], [])
    assert first_token_s < 30.0  # 10 s on a machine with nothing else to do


def test_to_no_replica_and_back(export: Path) -> None:
    with live_service(export, Serve(replicas=Replicas(min=0, max=1))) as live:
        gone_s = wait_until(lambda: not live.pids("replica"), 150, "no replica")
        assert httpx.get(f"{live.origin}/healthz", timeout=30).status_code == 200
        began = time.monotonic()
        answer = httpx.post(live.completions, json=question(), timeout=90)
        print(f"none after {gone_s:.1f} s; from none to an answer in {time.monotonic() - began:.1f} s")
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] == 40
        with Clients(live.completions) as clients:
            clients.wait_answers(30)
        assert clients.failures == []


async def crowd(live: Live, count: int, *, for_s: float) -> tuple[list[float], Counter[int], list[str]]:
    """So many clients at once: seconds of each answer, all statuses, and what was not as it should be."""
    took_s: list[float] = []
    statuses: Counter[int] = Counter()
    wrong: list[str] = []
    ends_at = time.monotonic() + for_s

    async def one() -> None:
        # A client of its own: a shared one looks at all its connections for each request, and takes seconds for it.
        async with httpx.AsyncClient(timeout=90, verify=False) as client:
            while time.monotonic() < ends_at:
                began = time.monotonic()
                answer = await client.post(live.completions, json=question(LONG))
                statuses[answer.status_code] += 1
                if answer.status_code == 200:
                    took_s.append(time.monotonic() - began)
                elif answer.status_code == 429 and answer.headers.get("retry-after", "").isdigit():
                    await asyncio.sleep(float(answer.headers["retry-after"]))
                else:
                    wrong.append(f"{answer.status_code} {answer.headers} {answer.text[:200]}")

    await asyncio.gather(*(one() for _ in range(count)))
    return took_s, statuses, wrong


def test_two_hundred_clients_against_room_for_two(export: Path) -> None:
    with live_service(export, Serve(max_ongoing_requests=2)) as live:
        asyncio.run(crowd(live, 8, for_s=6.0))  # as many as may be under way or wait: what an answer takes at most
        alone_s, _, none_wrong = asyncio.run(crowd(live, 8, for_s=8.0))
        asyncio.run(crowd(live, 200, for_s=6.0))
        before = {part: live.rss_bytes(part) for part in ("gateway", "replica")}
        crowded_s, statuses, wrong = asyncio.run(crowd(live, 200, for_s=25.0))
        grown = {part: live.rss_bytes(part) - before[part] for part in before}
    print(
        f"{statuses}; an answer took {statistics.median(alone_s):.2f} s at the median with 8 clients, "
        f"{statistics.median(crowded_s):.2f} s with 200; memory grew by {grown} bytes"
    )
    assert (none_wrong, wrong) == ([], [])
    assert set(statuses) == {200, 429}
    assert statuses[429] > statuses[200] > 10
    assert len(crowded_s) / 25.0 > 0.6 * len(alone_s) / 8.0  # as many are answered as before
    # The refusals take the gateway's time, and on two cores everybody's.
    assert statistics.median(crowded_s) < 3.0 * statistics.median(alone_s) + 0.5
    assert max(grown.values()) < 32 << 20
