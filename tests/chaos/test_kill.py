"""Kill everything at random moments: the same command goes on, and the joined curve is the unbroken one."""

from __future__ import annotations

import json
import random
import subprocess
import time
from pathlib import Path

import pytest
from harness import command, environment, kill_all, losses, steps

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1500)]

STEPS = 60
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
  checkpoint: {{every_steps: 5}}
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    words = ["wind", "sail", "rope", "gull", "storm", "night", "harbour", "lamp"]
    rng = random.Random(1)
    (tmp_path / "text.txt").write_text("\n".join(" ".join(rng.choices(words, k=9)) for _ in range(4000)))
    path = tmp_path / "chaos.yaml"
    path.write_text(JOB.format(text=tmp_path / "text.txt", steps=STEPS))
    return path


def start(job: Path, store: Path) -> subprocess.Popen[str]:
    args = command("run", job, "--store", store, "--until", "train", "--json")
    return subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())


def test_kills_at_random_moments_do_not_change_the_curve(job: Path, tmp_path: Path) -> None:
    out, err = start(job, tmp_path / "unbroken").communicate(timeout=400)
    unbroken = json.loads(out)["run"]
    rng = random.Random()
    killed_after_s = []
    store = tmp_path / "broken"
    for _ in range(4):
        driver = start(job, store)
        killed_after_s.append(round(rng.uniform(3, 45), 1))
        try:
            driver.wait(killed_after_s[-1])
        except subprocess.TimeoutExpired:
            kill_all(driver)
    began_at = time.monotonic()
    out, err = start(job, store).communicate(timeout=400)
    assert time.monotonic() - began_at < 400
    document = json.loads(out)
    assert document.get("steps") == STEPS, (killed_after_s, err)
    assert steps(store, document["run"]) == list(range(1, STEPS + 1)), killed_after_s
    assert losses(store, document["run"]) == losses(tmp_path / "unbroken", unbroken), killed_after_s
    assert not [p for p in store.rglob("*") if ".tmp-" in p.name]
