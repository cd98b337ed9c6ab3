"""The loader: samples are the flat stream whatever the shards, and each rank reads its part of one global order."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from orchestrator.data.load.loader import TrainLoader
from orchestrator.data.load.mixture import Part
from orchestrator.data.load.order import SampleOrder, deal, micro_batches
from orchestrator.data.shards import open_shard, write_shard
from orchestrator.errors import JobError
from orchestrator.job_data import Phase


def part_of(folder: Path, sizes: list[int], *, name: str = "all", weight: float | None = None) -> Part:
    """A part whose shards hold so many tokens."""
    paths = []
    rng = np.random.default_rng(sum(name.encode()))
    for i, size in enumerate(sizes):
        paths.append(folder / f"{name}-{i:05d}.arrow")
        write_shard(paths[-1], [rng.integers(0, 60_000, size, dtype=np.uint16)])
    return Part(name, weight, paths)


@pytest.mark.parametrize("tokens", [1, 8])
def test_a_context_longer_than_the_data_is_refused(tmp_path: Path, tokens: int) -> None:
    said = f"model.context is 8, but the training split has {tokens} tokens: not one sample"
    with pytest.raises(JobError, match=said) as caught:
        TrainLoader([part_of(tmp_path, [tokens])], context=8, samples_per_step=2, seed=0)
    assert caught.value.exit_code == 2
    assert f"at most {max(1, tokens - 1)}" in str(caught.value.fix)


def loader(folder: Path, *, samples_per_step: int = 10, seed: int = 3) -> TrainLoader:
    parts = [part_of(folder, [100, 1, 250, 49])]
    return TrainLoader(parts, context=8, samples_per_step=samples_per_step, seed=seed)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 7])
@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_the_ranks_together_read_what_one_worker_reads(tmp_path: Path, num_ranks: int, accumulation: int) -> None:
    train = loader(tmp_path)
    for step in range(1, 12):  # over two borders of epochs
        parts = [
            train.read(step, first, last)
            for rank in range(num_ranks)
            for first, last in micro_batches(*deal(10, rank, num_ranks), accumulation)
        ]
        assert np.concatenate(parts).tolist() == train.read(step, 0, 10).tolist()


def test_an_epoch_reads_every_sample_once(tmp_path: Path) -> None:
    train = loader(tmp_path, samples_per_step=7)
    assert train.num_samples == 49
    epochs = [[tuple(row) for step in range(e * 7 + 1, e * 7 + 8) for row in train.read(step, 0, 7)] for e in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert len(set(epochs[0])) == 49
    assert epochs[0] != epochs[1]


def test_a_step_is_the_same_in_another_process_and_another_with_another_seed(tmp_path: Path) -> None:
    first, again, other = loader(tmp_path), loader(tmp_path), loader(tmp_path, seed=4)
    assert first.read(40, 0, 10).tolist() == again.read(40, 0, 10).tolist()
    assert first.read(40, 0, 10).tolist() != other.read(40, 0, 10).tolist()


def test_nothing_is_read_for_an_empty_share(tmp_path: Path) -> None:
    assert loader(tmp_path).read(1, 4, 4).shape == (0, 9)


def test_without_weights_the_order_is_that_of_one_stream(tmp_path: Path) -> None:
    whole = loader(tmp_path)
    parts = [part_of(tmp_path, [100, 1, 250, 49])]
    cut = [Part("a", None, parts[0].shard_paths[:2]), Part("b", None, parts[0].shard_paths[2:])]
    both = TrainLoader(cut, context=8, samples_per_step=10, seed=3)
    for step in (1, 5, 6):
        assert both.read(step, 0, 10).tolist() == whole.read(step, 0, 10).tolist()
        assert whole.sample_ids(step, 0, 10).tolist() == SampleOrder(49, 3).at(np.arange(10) + step * 10 - 10).tolist()
    # Every target of an epoch (49 samples) is counted for its part, at borders within samples too.
    single = TrainLoader(cut, context=8, samples_per_step=49, seed=3)
    assert single.source_tokens(1) == {"a": 100, "b": 292}
    assert single.seen(1) == {}


def mixture(folder: Path, **changes: object) -> TrainLoader:
    parts = [
        part_of(folder, [100, 41], name="code", weight=0.25),
        part_of(folder, [5], name="tiny", weight=None),
        part_of(folder, [61, 60, 500], name="web", weight=0.75),
    ]
    return TrainLoader(parts, context=8, **{"samples_per_step": 10, "seed": 3, **changes})  # type: ignore[arg-type]


def test_a_mixture_reads_whole_samples_of_each_part_in_its_share(tmp_path: Path) -> None:
    train = mixture(tmp_path)
    sources = {
        name: np.concatenate([open_shard(p).tokens for p in sorted(tmp_path.glob(f"{name}-*"))])
        for name in ("code", "web")
    }
    where = {
        tuple(tokens[i * 8 : i * 8 + 9].tolist()): (name, i)
        for name, tokens in sources.items()
        for i in range((len(tokens) - 1) // 8)
    }
    found = [where[tuple(row)] for step in range(1, 9) for row in train.read(step, 0, 10).tolist()]
    assert Counter(name for name, _ in found) == {"code": 20, "web": 60}
    # code has 17 samples: each once before the first again.
    code = [i for name, i in found if name == "code"]
    assert sorted(code[:17]) == list(range(17))


def test_what_was_seen_adds_up_from_any_step(tmp_path: Path) -> None:
    curriculum = [Phase(until_step=3, weights={"web": 1.0}), Phase(weights={"web": 0.3, "code": 0.7})]
    going = mixture(tmp_path, curriculum=curriculum)
    total = Counter()
    for step in range(1, 30):
        total.update(going.source_tokens(step))
        seen = going.seen(step)
        assert {name: part.tokens for name, part in seen.items()} == {"tiny": 0, **total}
        assert mixture(tmp_path, curriculum=curriculum).seen(step) == seen
    assert total["code"] == pytest.approx(0.7 * 26 * 80, abs=10 * 8)
    assert going.seen(29)["code"].epochs == pytest.approx(total["code"] / (17 * 8))
    assert sum(going.source_tokens(1).values()) == 80
    assert going.source_tokens(3)["code"] == 0 < going.source_tokens(4)["code"]


def test_a_part_without_one_sample_cannot_have_a_weight(tmp_path: Path) -> None:
    said = "tiny has a weight of 0.5, but its training split is too short for one sample"
    with pytest.raises(JobError, match=said) as caught:
        mixture(tmp_path, curriculum=[Phase(weights={"tiny": 0.5})])
    assert "lower model.context" in str(caught.value.fix)


@pytest.mark.parametrize("mixed", [False, True])
def test_a_resume_needs_the_step_alone(tmp_path: Path, mixed: bool) -> None:
    make = mixture if mixed else loader
    going = make(tmp_path)
    for step in range(1, 20):
        rows = going.read(step, 0, 10)
        assert make(tmp_path).read(step, 0, 10).tolist() == rows.tolist()
