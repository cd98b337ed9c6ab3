"""kill -9 while a checkpoint is being written, at random byte offsets: the next start goes on from the one before.

Workers without Ray, alone and under torchrun, so that a start takes a few seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from harness import command, environment, kill_all, write_words

from orchestrator.checkpoint.inspect import checkpoint_rows
from orchestrator.checkpoint.layout import checkpoints_folder
from orchestrator.checkpoint.reader import committed_steps

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]

STEPS, EVERY = 120, 2
JOB = """\
name: saves
data:
  sources: [{{path: {text}}}]
  tokenizer: {{vocab_size: 512}}
model: {{layers: 2, width: 128, heads: 2, context: 32, dropout: 0.1}}
train:
  steps: {steps}
  batch_tokens: 256
  precision: fp32
  zero: {{stage: {stage}}}
  workers: {{min: {workers}, max: {workers}}}
  checkpoint: {{every_steps: {every}, keep_last: 2}}
track: {{wandb: {{mode: disabled}}}}
"""


class Case(NamedTuple):
    stage: int
    workers: int
    kills: int


CASES = [Case(0, 1, 11), Case(1, 2, 3), Case(2, 2, 3), Case(3, 2, 3)]
"""20 kills in all."""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_words(tmp_path_factory.mktemp("text") / "text.txt", lines=3000, seed=3)


def prepared(text: Path, folder: Path, case: Case) -> Path:
    """The folder of a run that nobody has trained."""
    job = folder / "saves.yaml"
    job.write_text(JOB.format(text=text, steps=STEPS, every=EVERY, stage=case.stage, workers=case.workers))
    args = command("prepare", job, "--store", folder / "store")
    subprocess.run(args, env=environment(), check=True, capture_output=True, timeout=200)
    (run,) = (folder / "store" / "runs").iterdir()
    return run


def arguments(run: Path, workers: int) -> list[str]:
    torchrun = [
        str(Path(sys.executable).with_name("torchrun")),
        "--standalone",
        "--nproc-per-node",
        str(workers),
        "-m",
        "--",
    ]
    return [*(torchrun if workers > 1 else [sys.executable, "-m"]), "orchestrator.train.worker", "--run", str(run)]


@contextlib.contextmanager
def training(run: Path, workers: int) -> Iterator[subprocess.Popen[str]]:
    """Ends with the block, whatever is left of it."""
    with (run.parent / "log").open("a") as log:
        process = subprocess.Popen(
            arguments(run, workers), stdout=log, stderr=log, text=True, env=environment(OMP_NUM_THREADS="1")
        )
        try:
            yield process
        finally:
            kill_all(process)  # torchrun puts its workers into sessions of their own


def told(run: Path) -> str:
    """The end of what the workers printed, without the warnings of the libraries."""
    lines = (run.parent / "log").read_text().splitlines()
    return "\n".join(line for line in lines if "Warning" not in line and "return func" not in line)[-3000:]


def being_written(run: Path) -> int:
    """Bytes of the checkpoint that is not there yet."""
    total = 0
    for folder in checkpoints_folder(run).glob("*.tmp-*"):
        for place, _, names in os.walk(folder):  # which passes over folders that go meanwhile, as those of shares do
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    total += Path(place, name).stat().st_size
    return total


def kill_in_a_save(run: Path, case: Case, offset: int) -> int:
    """Kill every process once so many bytes of a later checkpoint are written; how many there were."""
    first = newest_step(run)
    deadline = time.monotonic() + 120
    with training(run, case.workers) as process:
        while time.monotonic() < deadline and process.poll() is None:
            if newest_step(run) > first and (written := being_written(run)) >= offset:
                return written
    pytest.fail(f"no save reached {offset} bytes: {(run.parent / 'log').read_text()[-2000:]}")


def newest_step(run: Path) -> int:
    folder = checkpoints_folder(run)
    names = [path.name for path in folder.glob("step-????????") if (path / "COMMITTED").exists()]
    return max((int(name[-8:]) for name in names), default=0)


def curve(run: Path) -> list[tuple[int, float]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(line["train/step"], line["train/loss"]) for line in lines]


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=f"stage-{case.stage}", marks=[pytest.mark.slow] if case.stage else []) for case in CASES],
)
def test_kills_while_a_checkpoint_is_written_lose_nothing(case: Case, text: Path, tmp_path: Path) -> None:
    run = prepared(text, tmp_path, case)
    untouched = tmp_path / "untouched"
    shutil.copytree(run, untouched)
    with training(run, case.workers) as process:
        assert process.wait(200) == 0, told(run)
    unbroken, whole = curve(run), sum(p.stat().st_size for p in committed_steps(run)[-1].rglob("*") if p.is_file())
    shutil.rmtree(run)
    shutil.copytree(untouched, run)

    rng = random.Random()
    offsets = [rng.randrange(1, whole - 1) for _ in range(case.kills)]
    for offset in offsets:
        before = newest_step(run)
        kill_in_a_save(run, case, offset)
        assert newest_step(run) > before
        assert all(row["problem"] is None for row in checkpoint_rows(run, deep=True)), offsets
    with training(run, case.workers) as process:
        assert process.wait(200) == 0, told(run)
    assert curve(run) == unbroken, offsets
    assert not [path for path in run.rglob("*") if ".tmp-" in path.name]
