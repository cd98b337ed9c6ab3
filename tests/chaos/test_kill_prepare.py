"""kill -9 of everything in every pass of a preparation: the same command goes on and makes the same dataset."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from harness import command, environment, kill_all

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]

PASSES = ["read", "exact duplicates", "near duplicates: candidates", "sift", "tokenizer", "tokenise"]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepare")
    rng = random.Random(4)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 9))) for _ in range(3000)]
    for number in range(8):
        with (folder / f"part-{number}.jsonl").open("w") as file:
            for _ in range(2500):
                file.write(json.dumps({"text": " ".join(rng.choices(words, k=150))}) + "\n")
    path = folder / "job.yaml"
    path.write_text(
        f"name: killed\ndata:\n  sources: [{{path: {folder}, include: '*.jsonl'}}]\n  tokenizer: {{vocab_size: 2048}}\n"
    )
    return path


def prepare(job: Path, store: Path) -> subprocess.Popen[str]:
    args = command("prepare", job, "--store", store, "--json")
    return subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())


def digests(store: Path) -> dict[str, str]:
    (folder,) = [p for p in (store / "datasets").iterdir() if not p.name.startswith(".")]
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def finished(store: Path) -> dict[str, int]:
    """Finished units by pass, and when each was finished."""
    return {str(p.parent): p.stat().st_mtime_ns for p in store.glob("datasets/.work-*/*/*/result.json")}


@pytest.fixture(scope="module")
def unbroken(job: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    store = tmp_path_factory.mktemp("unbroken")
    out, err = prepare(job, store).communicate(timeout=300)
    assert json.loads(out)["state"] == "done", err
    return digests(store)


@pytest.mark.parametrize("name", PASSES)
def test_a_kill_in_a_pass_costs_only_what_was_under_way(
    name: str, job: Path, unbroken: dict[str, str], tmp_path: Path
) -> None:
    killed = prepare(job, tmp_path)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(f"datasets/.work-*/{name}")) and time.monotonic() < deadline:
        time.sleep(0.002)
    kill_all(killed)
    before = finished(tmp_path)
    assert not [p for p in (tmp_path / "datasets").iterdir() if not p.name.startswith(".")]
    out, err = prepare(job, tmp_path).communicate(timeout=300)
    document: dict[str, Any] = json.loads(out)
    assert document["state"] == "done", err
    assert digests(tmp_path) == unbroken
    timing = json.loads(next((tmp_path / "datasets").glob(".*.timing.json")).read_text())
    assert timing["resumed_units"] >= len(before)
    assert not list(tmp_path.glob("datasets/.work-*"))
