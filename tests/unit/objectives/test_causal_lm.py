"""What a batch of next tokens teaches, and how much it counts in its step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.load.loader import TrainLoader
from orchestrator.data.load.mixture import Part
from orchestrator.data.load.order import deal, micro_batches
from orchestrator.data.load.stream import Samples, TokenStream
from orchestrator.data.shards import write_shard
from orchestrator.objectives.causal_lm import LOSS, TokenExamples, TokenFeed, next_token_batch

CONTEXT = 5


def test_each_token_is_the_target_of_the_one_before() -> None:
    batch = next_token_batch(np.arange(12).reshape(2, 6))
    assert batch.tensors["input_ids"].tolist() == [[0, 1, 2, 3, 4], [6, 7, 8, 9, 10]]
    assert batch.tensors["targets"].tolist() == [[1, 2, 3, 4, 5], [7, 8, 9, 10, 11]]
    assert (batch.counts, batch.tokens) == ({LOSS: 10}, 10)


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shard") / "0.arrow"
    write_shard(path, [np.arange(203, dtype=np.uint16)])
    return path


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 7])
@given(samples=st.integers(1, 40), accumulation=st.integers(1, 9))
def test_the_counts_of_a_step_sum_to_its_total(shard: Path, num_ranks: int, samples: int, accumulation: int) -> None:
    loader = TrainLoader([Part("all", None, [shard])], context=CONTEXT, samples_per_step=samples, seed=0)
    feed = TokenFeed(loader, samples_per_step=samples)
    counts = [
        feed.read(1, first, last).counts[LOSS]
        for rank in range(num_ranks)
        for first, last in micro_batches(*deal(samples, rank, num_ranks), accumulation)
    ]
    assert len(counts) == num_ranks * accumulation
    assert sum(counts) == feed.totals(1)[LOSS] == samples * CONTEXT


def test_an_empty_micro_batch_counts_nothing_but_can_be_passed_forward(shard: Path) -> None:
    loader = TrainLoader([Part("all", None, [shard])], context=CONTEXT, samples_per_step=4, seed=0)
    batch = TokenFeed(loader, samples_per_step=4).read(1, 2, 2)
    assert (batch.counts[LOSS], batch.tokens) == (0, 0)
    assert batch.tensors["input_ids"].shape == batch.tensors["targets"].shape == (1, CONTEXT)
    assert set(batch.tensors["targets"].flatten().tolist()) == {-100}


@pytest.mark.parametrize(("context", "count", "tokens"), [(5, 40, 200), (500, 1, 202)])
def test_a_split_shorter_than_a_sample_is_one_short_sample(shard: Path, context: int, count: int, tokens: int) -> None:
    examples = TokenExamples(Samples(TokenStream([shard]), context))
    assert examples.count == count
    assert examples.read(0, count).counts[LOSS] == tokens
