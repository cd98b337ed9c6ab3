"""Every job of jobs/ that trains: it plans as it stands, and in small it is prepared, trained, exported, evaluated."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Result

from orchestrator.attempts import writing_run
from orchestrator.cluster.connect import Session
from orchestrator.evaluation.evaluate import evaluate_target
from orchestrator.export.stage import export_run
from orchestrator.job import JobSpec
from orchestrator.job_file import load_job
from orchestrator.run import prepare_only, sample_order
from orchestrator.store import Store
from orchestrator.train.group import TorchGroup, join_group, leave_group
from orchestrator.train.worker import run_worker

ROOT = Path(__file__).parents[2]
TRAINED = [path for path in sorted(ROOT.glob("jobs/*.yaml")) if load_job(path).train is not None]
every_job = pytest.mark.parametrize("path", TRAINED, ids=lambda path: path.stem)
STEPS, CONTEXT = 3, 32
GPU_BYTES = 80e9
NODE = ["--gpus", 8, "--cpus", 64, "--gpu-memory", "80GB"]

TRAINING = [
    f"train.steps={STEPS}",
    "train.schedule.warmup_steps=1",
    "train.zero.stage=0",
    "train.micro_batch=4",
    "train.workers={min: 1, max: 1, cpus: 1, gpus: 0}",
    "train.checkpoint.every_steps=2",
    f"train.evaluate.every_steps={STEPS}",
    "train.evaluate.max_tokens=1024",
    "track.wandb.mode=disabled",
]
NETWORK = [
    "model.layers=1",
    "model.width=32",
    "model.heads=2",
    f"model.context={CONTEXT}",
    f"train.batch_tokens={8 * CONTEXT}",
    "data.tokenizer.vocab_size=320",
]
"""Of decoders and encoders; a network of one's own has the sizes that its class has."""
CODE = 'data.sources=[{path: "${python:stdlib}/asyncio", include: "*.py", format: text}]'
ARTICLES = "{{name: {0}, path: '${{env:SLIPWAY_TEST_DATA}}/wikitext-2/{0}.txt.gz', document_start: '^ = ', split: {1}}}"
SMALLER_DATA = {
    "quickstart": [CODE],
    "wikitext": [f"data.sources=[{ARTICLES.format('valid', 'train')}, {ARTICLES.format('test', 'validation')}]"],
    # A question alone, or all that comes before an answer, may have over 32 tokens.
    **{name: ["model.context=128", "train.batch_tokens=512"] for name in ("answers", "assistant")},
    **{name: ["data.split={validation: 0.2, test: 0.2}"] for name in ("gpt-124m", "gpt-1b3", "bert-base")},
}
"""Where a whole set would take minutes, or a few documents are all there is."""


def in_small(path: Path) -> JobSpec:
    network = [] if load_job(path).model.kind == "custom" else NETWORK
    return load_job(path, [*TRAINING, *network, *SMALLER_DATA.get(path.stem, [])])


@pytest.fixture(scope="module")
def alone() -> Iterator[TorchGroup]:
    yield join_group()
    leave_group()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What SLIPWAY_TEXT names: documents of sentences."""
    folder = tmp_path_factory.mktemp("text")
    for i in range(30):
        lines = (f"The ship {i} has {count} sails. Its crew of {count * i} sings at dawn." for count in range(2, 40))
        (folder / f"{i}.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


@every_job
def test_it_plans_as_it_stands(path: Path, slipway: Callable[..., Result], tmp_path: Path) -> None:
    job = load_job(path)
    training, workers = job.training, job.training.workers
    cluster = [*NODE, "--nodes", -(-workers.min // 8)] if workers.gpus else []
    done = slipway("plan", path, *cluster, "--store", tmp_path, "--json")
    assert done.code == 0, done.stderr
    planned = done.document
    assert (planned["steps"], planned["tokens"]) == (training.steps, training.steps * training.batch_tokens)
    assert planned["zero_stage"] == training.zero.stage
    samples = planned["micro_batch"] * planned["accumulation"] * planned["plan"]["workers"]
    assert samples >= training.batch_tokens // job.model.context
    assert planned["why"]
    if job.model.kind == "custom":  # of these it knows no sizes
        return
    assert planned["parameters"] > 0
    assert planned["flops_per_token"] > 0
    memory = planned["memory_per_worker"]
    assert memory["peak"] >= memory["weights"] > 0
    if workers.gpus:
        assert memory["peak"] < GPU_BYTES


@every_job
def test_in_small_it_is_prepared_trained_exported_and_evaluated(
    path: Path, session: Session, alone: TorchGroup, store: Store, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "SLIPWAY_TEST_DATA" in str(load_job(path).data.sources) and "SLIPWAY_TEST_DATA" not in os.environ:
        pytest.skip("SLIPWAY_TEST_DATA is not set")
    monkeypatch.setenv("SLIPWAY_TEXT", str(text))
    monkeypatch.chdir(ROOT)
    prepare_only(in_small(path), store=store, session=session)
    (run,) = store.runs.iterdir()
    (alone_row,) = sample_order(in_small(path), store=store, steps="0:1", workers=1)
    (row,) = sample_order(in_small(path), store=store, steps="0:1", workers=2)
    assert row["ranks"][0] + row["ranks"][1] == alone_row["ranks"][0] != []
    with writing_run(run) as attempt:
        progress = run_worker(run, attempt=attempt, group=alone)
    assert progress.step == STEPS
    assert progress.train_loss is not None
    assert math.isfinite(progress.train_loss)
    assert progress.scores, "every job evaluates"
    ended: list[Callable[[], None]] = []
    made = export_run(run, at_end=ended.append)
    for call in ended:
        call()
    written = {path.name for path in made.path.iterdir()}
    assert {"config.json", "model.safetensors", "probe.safetensors", "COMMITTED"} <= written
    found = evaluate_target(store, str(run))
    assert found.samples > 0
    assert math.isfinite(found.scores.metrics["loss"])
