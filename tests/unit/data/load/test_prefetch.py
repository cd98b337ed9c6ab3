"""Reading ahead: exact order, bounded, errors where they belong, and no thread left behind."""

from __future__ import annotations

import threading
import time

import pytest

from orchestrator.data.load.prefetch import Prefetcher

WAIT_S = 5.0


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "prefetch"]


def wait_until(condition: object) -> None:
    ends_at = time.monotonic() + WAIT_S
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < ends_at
        time.sleep(0.001)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_items_come_in_order_and_end(depth: int) -> None:
    with Prefetcher(lambda step: step * 10, first=3, last=9, depth=depth) as ahead:
        assert list(ahead) == [30, 40, 50, 60, 70, 80, 90]
        with pytest.raises(StopIteration):
            next(ahead)
    assert threads() == []


def test_it_reads_ahead_as_far_as_depth_and_no_further() -> None:
    made: list[int] = []
    with Prefetcher(lambda step: made.append(step) or step, first=1, last=100, depth=2) as ahead:
        wait_until(lambda: len(made) == 2)
        assert next(ahead) == 1
        wait_until(lambda: len(made) == 3)
        time.sleep(0.02)
        assert made == [1, 2, 3]


def test_an_error_comes_at_its_step_and_stays() -> None:
    def make(step: int) -> int:
        if step == 3:
            raise ValueError("shard 7 is gone")
        return step

    with Prefetcher(make, first=1, last=5, depth=4) as ahead:
        assert [next(ahead), next(ahead)] == [1, 2]
        for _ in range(2):
            with pytest.raises(ValueError, match="shard 7 is gone"):
                next(ahead)
    assert threads() == []


@pytest.mark.parametrize("error", [None, RuntimeError("the step failed")])
def test_leaving_early_ends_the_thread(error: Exception | None) -> None:
    def leave() -> None:
        with Prefetcher(lambda step: step, first=1, last=10**9) as ahead:
            next(ahead)
            if error:
                raise error

    if error:
        with pytest.raises(RuntimeError, match="the step failed"):
            leave()
    else:
        leave()
    assert threads() == []


def test_nothing_to_read_is_the_end_at_once() -> None:
    with Prefetcher(lambda step: step, first=6, last=5) as ahead:
        assert list(ahead) == []


def test_waiting_is_counted_where_the_reader_waits() -> None:
    gate = threading.Event()
    with Prefetcher(lambda step: gate.wait(WAIT_S), first=1, last=2) as ahead:
        threading.Timer(0.05, gate.set).start()
        next(ahead)
        waited_s = ahead.waited_s
        assert waited_s >= 0.04
        wait_until(lambda: ahead._ended)
        next(ahead)
        assert ahead.waited_s - waited_s < 0.04
