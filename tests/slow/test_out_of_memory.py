"""A forward pass that does not fit into memory is halved, and the batch stays what it was."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Result, environment

pytestmark = pytest.mark.slow
_LIMIT_BYTES = 6 << 30


def test_the_micro_batch_is_halved_and_batch_tokens_stay(slipway: Callable[..., Result], tmp_path: Path) -> None:
    sets = {
        "train.zero.stage": 0,
        "train.precision": "fp32",
        "train.steps": 1,
        "train.batch_tokens": 262_144,
        "train.micro_batch": 2048,
        "model.width": 256,
    }
    options = [part for name, value in sets.items() for part in ("--set", f"{name}={value}")]
    prepared = slipway("prepare", "jobs/tiny.yaml", "--store", tmp_path, "--json", *options)
    assert prepared.code == 0, prepared.stderr
    (run,) = (tmp_path / "runs").iterdir()
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.train.worker", "--run", str(run)],
        capture_output=True,
        text=True,
        timeout=500,
        env=environment(),
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (_LIMIT_BYTES, _LIMIT_BYTES)),
    )
    assert done.returncode == 0, done.stderr
    assert "memory ran out with 2048 sample(s) in one forward pass of a worker: going on with fewer" in done.stderr
    assert int((run / "micro-batch").read_text()) < 2048
    (line,) = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    assert (line["train/step"], line["train/tokens"]) == (1, 262_144)
