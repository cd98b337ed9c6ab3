"""Ten minutes with a kill a minute: what is left over for training is spent on new steps."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Result, command, environment, write_words

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(1500)]

JOB = """\
name: soak
data:
  sources: [{{path: {text}}}]
  tokenizer: {{vocab_size: 320}}
model: {{layers: 2, width: 128, heads: 2, context: 128}}
train:
  steps: 1000000
  batch_tokens: 8192
  precision: fp32
  workers: {{min: 1, max: 2}}
  checkpoint: {{every_steps: 20}}
  log_every_steps: 100
"""
KILLS = 10
LEAST_USEFUL = 0.9
"""Of what the starts leave."""


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    job = tmp_path / "soak.yaml"
    job.write_text(JOB.format(text=write_words(tmp_path / "text.txt", lines=20_000)))
    args = command("run", job, "--store", tmp_path / "store", "--until", "train", "--json")
    with (tmp_path / "driver.txt").open("ab") as log:
        process = subprocess.Popen(args, env=environment(OMP_NUM_THREADS="1"), stdout=log, stderr=log)
    yield process
    process.terminate()
    process.wait(120)


def test_a_kill_a_minute_costs_what_the_starts_cost(
    driver: subprocess.Popen[bytes], slipway: Callable[..., Result], tmp_path: Path
) -> None:
    until = time.monotonic() + 240
    while not list(tmp_path.glob("store/runs/*/checkpoints/step-*/COMMITTED")) and time.monotonic() < until:
        assert driver.poll() is None, (tmp_path / "driver.txt").read_text()
        time.sleep(0.1)
    (run,) = (tmp_path / "store" / "runs").iterdir()
    done = slipway(
        "chaos", run, "--schedule", "kill-worker", "--every", "60s", "--for", "10m", "--json", timeout_s=1200
    )
    assert done.code == 0, done.stdout + done.stderr
    found = done.document
    assert (found["verdict"], found["violations"]) == ("pass", [])
    assert found["samples_lost"] == found["samples_repeated"] == 0
    assert len(found["faults"]) + len(found["put_off"]) >= KILLS - 1
    assert len(found["faults"]) >= KILLS - 2
    shown = slipway("runs", "show", run, "--json")
    assert shown.code == 0, shown.stderr
    goodput = shown.document["goodput"]
    parts_s = {name: seconds for name, seconds in goodput.items() if name.endswith("_s")}
    left_s = sum(parts_s.values()) - parts_s["startup_s"] - parts_s["recovery_s"]
    print({"recovered_in_s": [fault["recovered_in_s"] for fault in found["faults"]], **goodput})
    assert parts_s["useful_s"] >= LEAST_USEFUL * left_s, goodput
