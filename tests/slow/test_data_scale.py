"""Preparation in bounded memory: ten times the input, no more memory in a task."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
from harness import command, environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def corpus(path: Path, megabytes: int) -> Path:
    """Documents of about 6 kB, no two alike."""
    rng = random.Random(megabytes)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 10))) for _ in range(50_000)]
    written = 0
    with path.open("w") as file:
        while written < megabytes * 1_000_000:
            written += file.write(json.dumps({"text": " ".join(rng.choices(words, k=900))}) + "\n")
    return path


def prepare(source: Path, store: Path) -> dict[str, Any]:
    job = source.with_suffix(".yaml")
    settings = "tokenizer: {vocab_size: 4096, sample_bytes: 4000000}"
    job.write_text(f"name: scale\ndata:\n  sources: [{{path: {source}}}]\n  {settings}\n")
    args = command("prepare", job, "--store", store, "--json")
    done = subprocess.run(args, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    (timing,) = (store / "datasets").glob(".*.timing.json")
    return {**json.loads(done.stdout), **json.loads(timing.read_text())}


def test_memory_is_flat_in_the_size_of_the_input(tmp_path: Path) -> None:
    small = prepare(corpus(tmp_path / "small.jsonl", 30), tmp_path / "small")
    large = prepare(corpus(tmp_path / "large.jsonl", 300), tmp_path / "large")
    assert large["documents"] > 9 * small["documents"]
    assert large["peak_task_bytes"] < 1_000_000_000
    assert large["peak_task_bytes"] < 1.6 * small["peak_task_bytes"]
