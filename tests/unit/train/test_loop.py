"""The loop: what is read ahead is what the step asks for, its metrics, and its ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.checkpoint.layout import Progress
from orchestrator.data.load.loader import TrainLoader
from orchestrator.data.load.mixture import Part
from orchestrator.data.shards import write_shard
from orchestrator.errors import NumericalError, TrainError
from orchestrator.job import JobSpec
from orchestrator.objectives.causal_lm import TokenFeed
from orchestrator.objectives.protocol import Batch
from orchestrator.objectives.scores.result import Scores
from orchestrator.track import metrics
from orchestrator.track.samples import Window
from orchestrator.train.engine.protocol import Admit, StepStats
from orchestrator.train.guarding.guard import Anomaly, Past, RollbackError
from orchestrator.train.loop import Batching, Loop


class Alone:
    rank, num_ranks = 0, 1

    def sum(self, *numbers: float) -> list[float]:
        return list(numbers)


@dataclass
class Engine:
    """Keeps what it is given."""

    losses: dict[int, float] = field(default_factory=dict)
    steps: list[list[list[int]]] = field(default_factory=list)
    updates: list[int] = field(default_factory=list)

    def step(
        self, batches: Sequence[Batch], *, totals: dict[str, float], learning_rate: float, admit: Admit
    ) -> StepStats:
        self.steps.append([row for batch in batches for row in batch.tensors["targets"].tolist()])
        stats = StepStats({"loss": self.losses.get(len(self.steps), 1.0) * totals["loss"]}, 1.0)
        if admit(stats):
            self.updates.append(len(self.steps))
        return stats


@dataclass
class Hooks:
    stop_after: int | None = None
    lines: list[dict[str, Any]] = field(default_factory=list)
    saved: list[int] = field(default_factory=list)
    finished_at: int | None = None
    wanted_after: tuple[int, ...] = ()
    shares: list[tuple[int, int, np.ndarray]] = field(default_factory=list)
    anomalies: list[Anomaly] = field(default_factory=list)

    def consumed(self, step: int, first: int, numbers: np.ndarray) -> None:
        self.shares.append((step, first, numbers))

    def noticed(self, anomaly: Anomaly) -> None:
        self.anomalies.append(anomaly)

    def on_step(self, line: dict[str, Any]) -> None:
        self.lines.append(line)

    def save(self, progress: Progress) -> None:
        self.saved.append(progress.step)

    def save_wanted(self) -> bool:
        return len(self.lines) + 1 in self.wanted_after

    def let_change(self) -> float:
        return 0.0

    def finish(self) -> None:
        self.finished_at = len(self.lines)

    def stop_requested(self) -> bool:
        return self.stop_after is not None and len(self.lines) + 1 >= self.stop_after


def loader_of(folder: Path, weights: Sequence[float | None] = (None,)) -> TrainLoader:
    parts = []
    for i, weight in enumerate(weights):
        path = folder / f"{i}.arrow"
        write_shard(path, [np.random.default_rng(i).integers(0, 99, 600, dtype=np.uint16)])
        parts.append(Part(f"part-{i}", weight, [path]))
    return TrainLoader(parts, context=16, samples_per_step=8, seed=1)


def loop_of(job: JobSpec, loader: TrainLoader, *, engine: Engine, hooks: Hooks) -> Loop:
    feed = TokenFeed(loader, samples_per_step=8)
    return Loop(engine, Alone(), job.training, Batching(3, 3), feed, None, hooks)  # type: ignore[arg-type]


def running() -> bool:
    return any(thread.name == "prefetch" for thread in threading.enumerate())


def test_each_step_trains_on_its_samples_from_any_step_on(tmp_path: Path, tiny_job: Callable[..., JobSpec]) -> None:
    expected = [loader_of(tmp_path).read(step, 0, 8)[:, 1:].tolist() for step in range(1, 11)]
    for first in (0, 4):
        engine, hooks = Engine(), Hooks()
        loop = loop_of(tiny_job(), loader_of(tmp_path), engine=engine, hooks=hooks)
        assert loop.run(Progress(step=first)).step == 10
        assert engine.steps == expected[first:]
        assert [line[metrics.STEP] for line in hooks.lines] == list(range(first + 1, 11))
        assert {line[metrics.DATA_READ] for line in hooks.lines} == {8 * 17 * 2}
        assert not any(name.startswith("data/tokens/") for line in hooks.lines for name in line)
        assert not running()


def test_each_part_of_a_mixture_has_its_metrics(tmp_path: Path, tiny_job: Callable[..., JobSpec]) -> None:
    hooks, later = Hooks(), Hooks()
    loop_of(tiny_job(), loader_of(tmp_path, [3.0, 1.0]), engine=Engine(), hooks=hooks).run(Progress())
    last = hooks.lines[-1]
    assert (last["data/tokens/part-0"], last["data/tokens/part-1"]) == (960, 320)
    assert last["data/tokens/part-0"] + last["data/tokens/part-1"] == last[metrics.TOKENS]
    assert last["data/epoch/part-0"] == pytest.approx(960 / (37 * 16), abs=1e-4)
    loop_of(tiny_job(), loader_of(tmp_path, [3.0, 1.0]), engine=Engine(), hooks=later).run(Progress(step=6))
    names = [name for name in last if name.startswith("data/tokens/")]
    assert [[line[n] for n in names] for line in later.lines] == [[line[n] for n in names] for line in hooks.lines[6:]]


def test_an_evaluation_is_asked_for_after_its_steps(tmp_path: Path, tiny_job: Callable[..., JobSpec]) -> None:
    asked, hooks = [], Hooks()

    def evaluate(step: int) -> Scores:
        asked.append(step)
        return Scores({"loss": 1.0 / step, "accuracy": 0.5})

    loop = loop_of(tiny_job("train.evaluate.every_steps=4"), loader_of(tmp_path), engine=Engine(), hooks=hooks)
    loop.evaluate = evaluate
    assert loop.run(Progress()).validation_loss == 0.1
    assert asked == [4, 8, 10]
    assert [line[metrics.STEP] for line in hooks.lines if "eval/accuracy" in line] == asked
    assert [line[metrics.STEP] for line in hooks.lines if line.get(metrics.EVALUATION_TIME, -1.0) >= 0.0] == asked


def test_a_stop_is_saved_and_leaves_no_thread(tmp_path: Path, tiny_job: Callable[..., JobSpec]) -> None:
    hooks = Hooks(stop_after=3)
    loop = loop_of(tiny_job(), loader_of(tmp_path), engine=Engine(), hooks=hooks)
    assert loop.run(Progress()).step == 3
    assert (hooks.saved[-1], hooks.finished_at) == (3, 3)
    assert not running()


def test_a_loss_that_is_no_number_ends_the_loop_and_its_thread(
    tmp_path: Path, tiny_job: Callable[..., JobSpec]
) -> None:
    engine = Engine(losses={2: float("nan")})
    with pytest.raises(TrainError, match=r"the loss of step 2 is nan; its samples are [0-9]+(, [0-9]+){7}\n"):
        loop_of(tiny_job(), loader_of(tmp_path), engine=engine, hooks=Hooks()).run(Progress())
    assert not running()


def test_what_reading_raises_comes_out_at_its_step(tmp_path: Path, tiny_job: Callable[..., JobSpec]) -> None:
    class Failing(TrainLoader):
        def read(self, step: int, first: int, last: int) -> np.ndarray:
            if step == 3:
                raise OSError("the disk is gone")
            return super().read(step, first, last)

    loader, hooks = loader_of(tmp_path), Hooks()
    loader.__class__ = Failing
    with pytest.raises(OSError, match="the disk is gone"):
        loop_of(tiny_job(), loader, engine=Engine(), hooks=hooks).run(Progress())
    assert [line[metrics.STEP] for line in hooks.lines] == [1, 2]
    assert not running()


def test_a_checkpoint_that_somebody_wants_is_made_between_the_others(
    tmp_path: Path, tiny_job: Callable[..., JobSpec]
) -> None:
    hooks = Hooks(wanted_after=(2, 7))
    job = tiny_job("train.checkpoint={every_steps: 4}")
    loop_of(job, loader_of(tmp_path), engine=Engine(), hooks=hooks).run(Progress())
    assert hooks.saved == [2, 4, 7, 8, 10]


def guarded(action: str) -> tuple[str, str]:
    return f"train.guard.non_finite={action}", "train.guard.skip_batches=2"


def test_a_skipped_update_is_a_step_all_the_same(tmp_path: Path, tiny_job: Callable[..., JobSpec]) -> None:
    engine, hooks = Engine(losses={4: float("nan")}), Hooks()
    end = loop_of(tiny_job(*guarded("skip")), loader_of(tmp_path), engine=engine, hooks=hooks).run(Progress())
    assert engine.updates == [1, 2, 3, 5, 6, 7, 8, 9, 10]
    assert [line.get(metrics.SKIPPED_UPDATES) for line in hooks.lines] == [1 if n == 4 else None for n in range(1, 11)]
    assert [line[metrics.LOSS] for line in hooks.lines] == [None if n == 4 else 1.0 for n in range(1, 11)]
    assert (end.samples, end.train_loss) == (80, 1.0)
    (anomaly,) = hooks.anomalies
    assert (anomaly.step, anomaly.more) == (4, 0)
    assert list(anomaly.samples) == loader_of(tmp_path).sample_ids(4, 0, 8).tolist()


@pytest.mark.parametrize(("action", "error"), [("stop", NumericalError), ("rollback", RollbackError)])
def test_what_ends_an_attempt_changes_and_saves_nothing(
    tmp_path: Path, tiny_job: Callable[..., JobSpec], action: str, error: type[Exception]
) -> None:
    engine, hooks = Engine(losses={4: float("inf")}), Hooks()
    job = tiny_job(*guarded(action), "train.checkpoint.every_steps=4")
    with pytest.raises(NumericalError, match="the loss of step 4 is inf") as raised:
        loop_of(job, loader_of(tmp_path), engine=engine, hooks=hooks).run(Progress())
    assert type(raised.value) is error
    assert engine.updates == [1, 2, 3]
    assert hooks.saved == []
    assert len(hooks.lines) == 3


def test_batches_that_are_left_out_are_read_by_no_step(tmp_path: Path, tiny_job: Callable[..., JobSpec]) -> None:
    windows = (Window(3, 2), Window(5, 1))
    batches = [1, 2, 3, 6, 7, 9, 10, 11, 12, 13]
    for first in (0, 4):
        engine, hooks = Engine(), Hooks()
        loop = loop_of(tiny_job(), loader_of(tmp_path), engine=engine, hooks=hooks)
        loop.past = Past(windows=windows)
        loop.run(Progress(step=first))
        expected = [loader_of(tmp_path).read(batch, 0, 8)[:, 1:].tolist() for batch in batches]
        assert engine.steps == expected[first:]
        assert [share[0] for share in hooks.shares] == list(range(first + 1, 11))
        for (_, start, numbers), batch in zip(hooks.shares, batches[first:], strict=True):
            assert start == 0
            assert numbers.tolist() == loader_of(tmp_path).sample_ids(batch, 0, 8).tolist()
