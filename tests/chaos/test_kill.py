"""Kill everything at random moments: the same command goes on, and the joined curve is the unbroken one."""

from __future__ import annotations

import json
import random
import subprocess
import time
from pathlib import Path

import pytest
from harness import command, environment, kill_all, losses, steps, write_words

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1500)]

STEPS = 400
JOB = """\
name: chaos
data:
  sources: [{{path: {text}}}]
  tokenizer: {{vocab_size: 320}}
  split: {{validation: 0.1}}
model: {{layers: 2, width: 64, heads: 2, context: 64, dropout: 0.1}}
train:
  steps: {steps}
  batch_tokens: 1024
  precision: fp32
  workers: {{min: 1, max: 2}}
  checkpoint: {{every_steps: 20}}
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "chaos.yaml"
    path.write_text(JOB.format(text=write_words(tmp_path / "text.txt", lines=4000), steps=STEPS))
    return path


def start(job: Path, store: Path) -> subprocess.Popen[str]:
    args = command("run", job, "--store", store, "--until", "train", "--json")
    return subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())


def await_line(store: Path, line: int, driver: subprocess.Popen[str]) -> None:
    """Wait until so many steps are finished."""
    while driver.poll() is None:
        found = list(store.glob("runs/*/metrics.jsonl"))
        if found and len(found[0].read_text().splitlines()) >= line:
            return
        time.sleep(0.01)


def test_kills_at_random_moments_do_not_change_the_curve(job: Path, tmp_path: Path) -> None:
    out, err = start(job, tmp_path / "unbroken").communicate(timeout=400)
    unbroken = json.loads(out)["run"]
    rng = random.Random()
    killed_at = [0]
    store = tmp_path / "broken"
    for _ in range(3):  # each somewhat further on, so that all hit a run that is under way
        killed_at.append(killed_at[-1] + rng.randint(5, 100))
        driver = start(job, store)
        await_line(store, killed_at[-1], driver)
        kill_all(driver)
    began_at = time.monotonic()
    out, err = start(job, store).communicate(timeout=400)
    assert time.monotonic() - began_at < 400
    document = json.loads(out)
    assert document.get("steps") == STEPS, (killed_at, err)
    assert steps(store, document["run"]) == list(range(1, STEPS + 1)), killed_at
    assert document["resumed_from_step"] is not None, killed_at
    assert losses(store, document["run"]) == losses(tmp_path / "unbroken", unbroken), killed_at
    assert not [p for p in store.rglob("*") if ".tmp-" in p.name]
