"""A checkpoint is of its step to the bit, though training goes on while it is written; what fails is raised later."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from engine_fixtures import RATE, Normalised, SquaredError, TorchEngine, decoder, ids_of, points, settings, step_of
from safetensors.torch import load_file
from torch import Tensor

from orchestrator.attempts import Attempt, writing_run
from orchestrator.checkpoint import layout
from orchestrator.checkpoint.layout import Progress, checkpoints_folder
from orchestrator.checkpoint.reader import Checkpoint, committed_steps, newest_checkpoint, read_checkpoint
from orchestrator.checkpoint.writer import CheckpointWriter, Retention
from orchestrator.errors import StoreError
from orchestrator.job import JobSpec
from orchestrator.objectives.causal_lm import CausalLM
from orchestrator.train.engine.deepspeed_engine import DeepSpeedEngine
from orchestrator.train.engine.pieces import PieceReader
from orchestrator.train.engine.protocol import StepStats, TrainEngine
from orchestrator.train.group import TorchGroup
from orchestrator.train.saving.background import Background
from orchestrator.train.saving.saver import Saved, Saver

PROBE = {"input_ids": ids_of(1)[:2, :-1].contiguous()}


@pytest.fixture
def attempt(tmp_path: Path) -> Iterator[Attempt]:
    run = tmp_path / "tiny-0123"
    run.mkdir()
    with writing_run(run) as mine:
        yield mine


def saver_of(engine: TrainEngine, group: TorchGroup, job: JobSpec, attempt: Attempt, probe: dict[str, Tensor]) -> Saver:
    writer = CheckpointWriter(attempt.run, group=group, attempt=attempt, retention=Retention(9))
    return Saver(
        writer, engine=engine, group=group, job=job, description={"head": {"kind": "lm"}}, probe=probe, stage=0
    )


def save(saver: Saver, step: int, *, before: Callable[[], None] = lambda: None) -> list[Saved]:
    stood: list[Saved] = []
    saver.save(Progress(step=step), attempt=1, facts={}, before=before, after=lambda saved, path: stood.append(saved))
    return stood


def expect(what: bool) -> None:
    assert what


def pieces(engine: TrainEngine) -> dict[str, Tensor]:
    state = engine.state()
    assert state is not None
    return {name: piece.values_N.clone() for name, piece in state.pieces.items()}


def held(folder: Path) -> dict[str, Tensor]:
    with PieceReader(folder / layout.STATE_FOLDER) as reader:
        return {name: reader.read(name, 0, reader.size(name)) for name in reader.names}


def newest(attempt: Attempt) -> Checkpoint:
    found = newest_checkpoint(attempt.run, say=print)
    assert found is not None
    return found


@pytest.mark.parametrize("stage", [None, 0, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_checkpoint_is_of_its_step(
    alone: TorchGroup,
    attempt: Attempt,
    tiny_job: Callable[..., JobSpec],
    stage: int | None,
    precision: str,
) -> None:
    train = settings(precision=precision, zero={"stage": stage or 0})
    engine: TrainEngine = (
        TorchEngine(decoder(), CausalLM(), settings(precision=precision, ema=0.9), group=alone)
        if stage is None
        else DeepSpeedEngine(decoder(), CausalLM(), train, group=alone, stage=stage, micro_batch=8, accumulation=1)
    )
    saver = saver_of(engine, alone, tiny_job(f"train.precision={precision}"), attempt, PROBE)

    def admit(stats: StepStats) -> bool:
        saver.let_change()
        return True

    expected, logits = {}, {}
    for step in range(1, 4):
        step_of(engine, step, admit=admit)
        logits[step] = engine.outputs(PROBE)["logits"]
        expected[step] = pieces(engine)
        save(saver, step)
    step_of(engine, 4, admit=admit)
    saver.finish()
    for folder in committed_steps(attempt.run):
        step = read_checkpoint(folder).step
        found = held(folder)
        assert found.keys() == expected[step].keys()
        assert all(torch.equal(found[name], value) for name, value in expected[step].items()), step
        assert torch.equal(load_file(folder / layout.PROBE)["trainer_logits"], logits[step])
        kind = "average" if stage is None else "weight"
        weights = load_file(folder / layout.WEIGHTS)
        assert all(
            torch.equal(value.view(-1), expected[step][f"{kind}/{name}"].float()) for name, value in weights.items()
        )
    assert len(committed_steps(attempt.run)) == 3
    fresh = TorchEngine(decoder(), CausalLM(), settings(precision=precision, ema=0.9), group=alone)
    if stage is None:
        assert saver_of(fresh, alone, tiny_job(), attempt, PROBE).restore(newest(attempt)).step == 3
        assert all(torch.equal(value, expected[3][name]) for name, value in pieces(fresh).items())


def test_buffers_are_those_of_the_step(alone: TorchGroup, attempt: Attempt, tiny_job: Callable[..., JobSpec]) -> None:
    engine = TorchEngine(Normalised(), SquaredError(), settings(), group=alone)
    probe = {"x": points(9).tensors["x"]}
    saver = saver_of(engine, alone, tiny_job("train.precision=fp32"), attempt, probe)
    writes = threading.Event()
    engine.step([points(1)], totals={"error": 6.0}, learning_rate=RATE)
    expected = {name: value for name, value in pieces(engine).items() if name.startswith("buffer/")}
    save(saver, 1, before=lambda: expect(writes.wait(20)))
    assert saver.let_change() < 20  # the copy is made, though nothing is written yet
    engine.step([points(2)], totals={"error": 6.0}, learning_rate=RATE)
    writes.set()
    saver.finish()
    found = held(newest(attempt).path)
    assert {name for name in found if name.startswith("buffer/")} == expected.keys() != set()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


class Watched(TorchEngine):
    """What its weights are put together from."""

    names: frozenset[str] = frozenset()

    def whole(self, reader: PieceReader) -> dict[str, Tensor]:
        self.names = frozenset(reader.names)
        return super().whole(reader)


def test_the_weights_are_made_without_the_state_of_the_optimizer(
    alone: TorchGroup, attempt: Attempt, tiny_job: Callable[..., JobSpec]
) -> None:
    engine = Watched(decoder(), CausalLM(), settings(), group=alone)
    step_of(engine, 1)
    saver = saver_of(engine, alone, tiny_job("train.precision=fp32"), attempt, PROBE)
    save(saver, 1)
    saver.finish()
    assert {name.partition("/")[0] for name in engine.names} == {"weight"}
    folder = newest(attempt).path
    assert any(name.startswith("optimizer.") for name in held(folder))
    assert {path.name for path in folder.iterdir()} == {
        *layout.EXPORTED,
        "zero",
        "rng-00000.safetensors",
        "manifest.json",
        "COMMITTED",
    }


def test_what_fails_is_raised_by_the_next_save_and_nothing_is_published(
    alone: TorchGroup, attempt: Attempt, tiny_job: Callable[..., JobSpec]
) -> None:
    engine = TorchEngine(decoder(), CausalLM(), settings(), group=alone)
    saver = saver_of(engine, alone, tiny_job("train.precision=fp32"), attempt, PROBE)
    stood = save(saver, 1)
    saver.finish()
    assert [saved.progress.step for saved in stood] == [1]
    assert stood[0].stalled_s > 0

    def broken() -> None:
        raise OSError(28, "No space left on device")

    assert save(saver, 2, before=broken) == []
    while not saver.failed:
        pass
    with pytest.raises(OSError, match="No space left on device"):
        save(saver, 3)
    assert not saver.failed
    save(saver, 3)
    saver.finish()
    assert sorted(p.name for p in checkpoints_folder(attempt.run).iterdir()) == ["step-00000001", "step-00000003"]


class Meeting:
    """Two ranks that are threads of this process: each call waits for the other's."""

    def __init__(self) -> None:
        self.values: dict[int, object] = {}
        self.barrier = threading.Barrier(2, timeout=20)


class Paired:
    """One of the two."""

    num_ranks = 2

    def __init__(self, rank: int, meeting: Meeting) -> None:
        self.rank, self._meeting = rank, meeting

    def gather(self, value: object) -> list[object]:
        self._meeting.values[self.rank] = value
        self._meeting.barrier.wait()
        found = [self._meeting.values[rank] for rank in range(2)]
        self._meeting.barrier.wait()
        return found

    def broadcast(self, value: object) -> object:
        return self.gather(value)[0]


@pytest.mark.parametrize("broken", [0, 1])
def test_what_fails_on_one_rank_is_raised_on_both_and_keeps_nobody_waiting(
    broken: int, alone: TorchGroup, attempt: Attempt, tiny_job: Callable[..., JobSpec]
) -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    meeting, engine = Meeting(), TorchEngine(decoder(), CausalLM(), settings(), group=alone)
    ranks: list[TorchGroup] = [Paired(rank, meeting) for rank in range(2)]  # type: ignore[misc]
    savers = [saver_of(engine, group, tiny_job("train.precision=fp32"), attempt, PROBE) for group in ranks]
    for rank, saver in enumerate(savers):
        save(saver, 1, before=fail if rank == broken else lambda: None)
    for saver in savers:
        with pytest.raises(OSError, match="No space left on device"):
            saver.finish()
    assert not list(checkpoints_folder(attempt.run).iterdir())


def test_a_state_that_computes_something_else_is_refused(
    alone: TorchGroup, attempt: Attempt, tiny_job: Callable[..., JobSpec]
) -> None:
    job = tiny_job("train.precision=fp32")
    engine = TorchEngine(decoder(), CausalLM(), settings(), group=alone)
    saver = saver_of(engine, alone, job, attempt, PROBE)
    save(saver, 1)
    saver.finish()
    before = newest(attempt)
    assert saver.restore(before).step == 1
    step_of(engine, 1)
    other = saver_of(engine, alone, job, attempt, PROBE)
    save(other, 2)
    other.finish()
    after = newest(attempt)
    (state,) = (after.path / layout.STATE_FOLDER).iterdir()
    (older,) = (before.path / layout.STATE_FOLDER).iterdir()
    state.write_bytes(older.read_bytes())
    with pytest.raises(StoreError, match="step-00000002 gives other outputs than when it was saved: prompt "):
        saver.restore(after)


def test_one_thing_at_a_time_happens_in_the_background() -> None:
    background, order, go = Background("test"), list[int](), threading.Event()
    background.start(lambda: order.append(1) if go.wait(20) else None)
    assert not background.wait(limit_s=0.01)
    go.set()
    background.start(lambda: order.append(2))
    assert background.wait()
    assert order == [1, 2]
