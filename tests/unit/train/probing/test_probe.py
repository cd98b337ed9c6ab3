"""A probe: random samples that every objective learns from, steps that are counted right, ends that are told."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import CapacityError, DataError, JobError, OutOfMemoryError, TrainError
from orchestrator.job import JobSpec
from orchestrator.plan import ClusterView, Node, make_plan
from orchestrator.store import Store
from orchestrator.track import metrics
from orchestrator.train.group import TorchGroup
from orchestrator.train.probing import probe as probing
from orchestrator.train.probing.samples import assemble_random
from orchestrator.train.probing.worker import StepWatch, forget_peak, peak_bytes, resident_bytes

MakeJob = Callable[..., JobSpec]
VIEW = ClusterView(nodes=[Node(cpus=1, memory_bytes=8 * 10**9)])
VOCABULARY, CONTEXT = 61, 16

ROWS = "data.sources=[{path: rows.jsonl, format: jsonl}]"
KINDS: dict[str, tuple[tuple[str, ...], float]] = {
    "causal-lm": ((), math.log(VOCABULARY)),
    "chat": (("data.kind=chat", ROWS), math.log(VOCABULARY)),
    "preference": (("data.kind=preference", ROWS), math.log(2)),
    "preference-lora": (("data.kind=preference", ROWS, "train.lora={rank: 2}"), math.log(2)),
    "masked-lm": (("model.kind=bert",), math.log(VOCABULARY)),
    "pairs": (
        ("model.kind=bert", "train.masking.next_sentence=true", "data.sentence_ends=true"),
        math.log(VOCABULARY) + math.log(2),
    ),
    "classification": (("model.kind=bert", "data.kind=classification", ROWS), math.log(2)),
    "three classes": (
        ("model.kind=bert", "data.kind=classification", ROWS, "data.labels=[x, y, z]"),
        math.log(3),
    ),
    "token-classification": (("model.kind=bert", "data.kind=token-classification", ROWS), math.log(2)),
    "question-answering": (("model.kind=bert", "data.kind=question-answering", ROWS), math.log(CONTEXT)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_random_samples_cost_every_objective_what_a_guess_costs(
    tiny_job: MakeJob, alone: TorchGroup, kind: str
) -> None:
    sets, guess = KINDS[kind]
    job = tiny_job(*sets, f"model.vocab_size={VOCABULARY}", "data.tokenizer.path=given.json", "train.zero.stage=0")
    plan = make_plan(job, VIEW, vocab_size=VOCABULARY)
    engine, feed, batching = assemble_random(job, plan, alone, vocab_size=VOCABULARY)
    assert batching.micro_batch == feed.samples_per_step == 8
    batch = feed.read(1, 0, 8)
    totals = {part: float(count) for part, count in batch.counts.items()}
    stats = engine.step([batch], totals=totals, learning_rate=1e-3)
    assert sum(stats.losses[part] / totals[part] for part in totals) == pytest.approx(guess, rel=0.15)
    assert stats.grad_norm > 0.0


def test_what_is_timed_comes_after_three_steps_and_a_second() -> None:
    now = 0.0
    watch = StepWatch(4, clock=lambda: now)
    steps = 0
    while True:
        steps += 1
        stop = watch.stop_requested()
        now += 0.25
        watch.on_step({metrics.STEP_TIME: float(steps)})
        if stop:
            break
    assert watch.timed == [6.0, 7.0, 8.0, 9.0]  # the second after the first step ends with the fifth


def test_short_steps_are_timed_for_five_seconds() -> None:
    now = 0.0
    watch = StepWatch(4, clock=lambda: now)
    while not watch.stop_requested():
        now += 0.05
        watch.on_step({metrics.STEP_TIME: 0.05})
    assert len(watch.timed) == 99  # and the one that is under way


def test_slow_steps_end_a_probe_with_what_there_is() -> None:
    now = 0.0
    watch = StepWatch(8, clock=lambda: now)
    while not watch.stop_requested():
        now += 70.0
        watch.on_step({metrics.STEP_TIME: 70.0})
    assert len(watch.timed) < 8


def test_memory_is_what_was_held_at_the_highest() -> None:
    forget_peak()
    before = resident_bytes()
    held = b"x" * 64_000_000
    del held
    assert peak_bytes() - before == pytest.approx(64_000_000, rel=0.1)
    forget_peak()
    assert peak_bytes() - before < 16_000_000


@pytest.mark.parametrize(
    ("sets", "error", "named"),
    [
        (("train.workers={gpus: 64}",), CapacityError, "64 GPU(s)"),
        (("data.tokenizer.path=absent.json",), JobError, "tokenizer of tiny"),
        (
            (
                "model={kind: custom, class: 'package.module:Class', context: 16}",
                "data={kind: columns, columns: {a: int64}, " + ROWS[5:].replace("=", ": ") + "}",
            ),
            DataError,
            "columns",
        ),
    ],
)
def test_what_cannot_be_probed_is_refused_by_name(
    tiny_job: MakeJob, tmp_path: Path, sets: tuple[str, ...], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named.replace("(", r"\(").replace(")", r"\)")):
        probing.probe(tiny_job(*sets), VIEW, store=Store(tmp_path))


@pytest.mark.parametrize(
    ("code", "error", "named"),
    [
        ("import os; os.kill(os.getpid(), 9)", OutOfMemoryError, "was killed with 4 sample"),
        ("raise ValueError('no such thing')", TrainError, "exit code 1: ValueError: no such thing"),
        ("import os; os._exit(3)", TrainError, "exit code 3: it said nothing"),
    ],
)
def test_a_process_that_ends_without_a_word_is_told_of(code: str, error: type[Exception], named: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    found = probing._crashed(done, 4)
    assert type(found) is error
    assert named in found.message
    assert found.fix


def test_where_memory_runs_out_the_micro_batch_is_halved(tiny_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def measured(job: JobSpec, asked: dict[str, Any]) -> dict[str, Any]:
        tried.append(asked["micro_batch"])
        if asked["micro_batch"] > limit:
            raise OutOfMemoryError("memory ran out", fix="")
        return {"steps": 8}

    monkeypatch.setattr(probing, "_measured", measured)
    limit = 2
    assert probing._until_it_fits(tiny_job(), {}, 8) == ({"steps": 8}, 2)
    assert tried == [8, 4, 2]
    limit = 0
    with pytest.raises(OutOfMemoryError):
        probing._until_it_fits(tiny_job(), {}, 8)
    assert tried[3:] == [8, 4, 2, 1]
