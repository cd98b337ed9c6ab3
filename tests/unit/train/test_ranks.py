"""The slowest rank: found among any times, and named where ranks train together."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import run_ranks
from hypothesis import given
from hypothesis import strategies as st
from rank_fixtures import LOGGED, SLEEP_S, SLOW_RANK, STEPS, feed_of, lines_of

from orchestrator.objectives.causal_lm import CausalLM
from orchestrator.track import metrics
from orchestrator.train.group import TorchGroup
from orchestrator.train.ranks import RankTimes, Stopwatch, slowest, times_line

SECONDS = st.floats(1e-6, 1e4)


@pytest.mark.parametrize(
    ("own_s", "rank", "excess"),
    [
        ([1.0], 0, 0.0),
        ([1.0, 1.0], 0, 0.0),
        ([1.0, 3.0], 1, 0.5),
        ([2.0, 1.0, 1.0], 0, 1.0),
        ([1.0, 1.0, 1.5, 1.0], 2, 0.5),
        ([3.0, 1.0, 3.0, 1.0], 0, 0.5),
        ([0.0, 0.0], 0, 0.0),
        ([0.0, 0.0, 1.0], 2, 0.0),
    ],
)
def test_the_slowest_is_told_with_its_excess_over_the_median(own_s: list[float], rank: int, excess: float) -> None:
    assert slowest(own_s) == (rank, pytest.approx(excess))


@given(own_s=st.lists(SECONDS, min_size=1, max_size=9), factor=st.sampled_from([1e-3, 1.0, 60.0]))
def test_any_times_have_a_slowest_whatever_the_unit(own_s: list[float], factor: float) -> None:
    rank, excess = slowest(own_s)
    assert own_s[rank] == max(own_s)
    assert rank == own_s.index(max(own_s))
    assert (1 + excess) * statistics.median(own_s) == pytest.approx(max(own_s))
    assert excess >= 0
    assert slowest([factor * s for s in own_s]) == (rank, pytest.approx(excess, rel=1e-9, abs=1e-9))


@given(
    spans=st.integers(2, 7).flatmap(
        lambda ranks: st.lists(
            st.lists(st.tuples(SECONDS, SECONDS), min_size=ranks, max_size=ranks), min_size=1, max_size=4
        )
    )
)
def test_the_sum_of_all_shares_has_every_ranks_means(spans: list[list[tuple[float, float]]]) -> None:
    """`spans` has a row for each step: passes and wait of each rank."""
    num_ranks = len(spans[0])
    times = [RankTimes(rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
    for _ in range(2):  # an interval leaves nothing to the next
        for step in spans:
            for own, (compute_s, wait_s) in zip(times, step, strict=True):
                own.add(compute_s=compute_s, data_wait_s=wait_s)
        line = times_line([sum(numbers) for numbers in zip(*(own.share() for own in times), strict=True)])
        for rank in range(num_ranks):
            compute_s = statistics.fmean(step[rank][0] for step in spans)
            wait_s = statistics.fmean(step[rank][1] for step in spans)
            assert line[f"time/own_s/{rank}"] == pytest.approx(compute_s + wait_s, abs=1e-6)
            assert line[f"time/data_wait_s/{rank}"] == pytest.approx(wait_s, abs=1e-6)
        assert len(line) == 2 + 2 * num_ranks


def test_a_stopwatch_adds_up_its_spans_once() -> None:
    watch = Stopwatch(torch.device("cpu"))
    for _ in range(2):
        with watch.running():
            time.sleep(0.02)
        time.sleep(0.02)
    assert 0.04 <= watch.take() < 0.06 + 0.1
    assert watch.take() == 0.0


def test_a_span_that_failed_does_not_count() -> None:
    watch = Stopwatch(torch.device("cpu"))
    with pytest.raises(MemoryError), watch.running():
        raise MemoryError
    assert watch.take() == 0.0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpus_work_is_timed_by_its_own_clock() -> None:
    watch, matrix = Stopwatch(torch.device("cuda")), torch.ones(4096, 4096, device="cuda")
    torch.cuda.synchronize()
    began_at = time.perf_counter()
    with watch.running():
        for _ in range(20):
            matrix @ matrix
    launched_s = time.perf_counter() - began_at
    torch.cuda.synchronize()
    done_s = time.perf_counter() - began_at
    assert launched_s < watch.take() <= 1.1 * done_s


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[dict[str, Any]]]]:
    """What two ranks tell, one of which is slow: first in its passes, then in reading."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks("rank_fixtures.py", folder, 2, limit_s=120)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("where", ["passes", "data"])
def test_a_rank_that_is_slow_is_named(together: list[dict[str, list[dict[str, Any]]]], where: str) -> None:
    lines = together[0][where]
    logged = [line for line in lines if metrics.SLOWEST_RANK in line]
    assert [line[metrics.STEP] for line in logged] == list(range(LOGGED, STEPS + 1, LOGGED))
    # The first steps warm up, and reading is ahead of them; of the others, the one that the machine disturbed least.
    line = min(logged[1:], key=lambda one: float(one["time/own_s/0"]))
    assert line[metrics.SLOWEST_RANK] == SLOW_RANK
    assert line[metrics.SLOWEST_EXCESS] > 0.2
    assert line[f"time/own_s/{SLOW_RANK}"] > (2 * SLEEP_S if where == "passes" else SLEEP_S)
    # The other one waits for it, in the exchange of gradients: that is no time of its own.
    assert line["time/own_s/0"] < SLEEP_S < line[metrics.STEP_TIME]
    assert (line[f"time/data_wait_s/{SLOW_RANK}"] > SLEEP_S) == (where == "data")


@pytest.mark.parametrize("where", ["passes", "data"])
def test_all_ranks_know_the_same_times(together: list[dict[str, list[dict[str, Any]]]], where: str) -> None:
    names = [metrics.SLOWEST_RANK, metrics.SLOWEST_EXCESS, "time/own_s/0", "time/own_s/1"]
    first, second = (
        [[line[name] for name in names] for line in rank[where] if metrics.SLOWEST_RANK in line] for rank in together
    )
    assert first == second


def test_a_rank_alone_is_not_compared(alone: TorchGroup, tmp_path: Path) -> None:
    lines = lines_of(alone, CausalLM(), feed_of(tmp_path))
    assert len(lines) == STEPS
    assert not [name for line in lines for name in line if "slowest" in name or name.startswith("time/own_s")]
