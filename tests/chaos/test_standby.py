"""A worker is killed while others stand by: the next attempt's are those, and it begins in seconds."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from harness import command, environment, write_words

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]

JOB = """\
name: standby
data:
  sources: [{{path: {text}}}]
  tokenizer: {{vocab_size: 320}}
model: {{layers: 1, width: 64, heads: 2, context: 64}}
train:
  steps: 1000000
  batch_tokens: 4096
  precision: fp32
  zero: {{stage: 2}}
  workers: {{min: 2, max: 2}}
  checkpoint: {{every_steps: 50}}
  log_every_steps: 1000
track: {{wandb: {{mode: disabled}}}}
"""
LIMIT_S = 120.0


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[psutil.Popen]:
    job = tmp_path / "job.yaml"
    job.write_text(JOB.format(text=write_words(tmp_path / "text.txt", lines=5_000)))
    args = command("run", job, "--store", tmp_path / "store", "--until", "train", "--json")
    with (tmp_path / "driver.txt").open("ab") as log:
        process = psutil.Popen(args, env=environment(OMP_NUM_THREADS="1"), stdout=log, stderr=log)
    yield process
    with contextlib.suppress(psutil.NoSuchProcess):
        process.terminate()
    process.wait(120)


def below(driver: psutil.Popen, title: str) -> set[int]:
    """Processes of the driver's Ray with that title."""
    found = set()
    for process in driver.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if title in " ".join(process.cmdline()):
                found.add(process.pid)
    return found


def ready(driver: psutil.Popen) -> set[int]:
    """Idle processes that have torch."""
    return {pid for pid in below(driver, "ray::IDLE") if "libtorch_cpu" in Path(f"/proc/{pid}/maps").read_text()}


def until(true: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < give_up_at
        time.sleep(0.1)


def test_a_killed_worker_is_replaced_by_one_that_stood_by(driver: psutil.Popen, tmp_path: Path) -> None:
    until(lambda: len(ready(driver)) >= 4)
    time.sleep(5.0)  # what they import after torch
    standing, before = ready(driver), below(driver, "RayTrainWorker")
    assert len(before) == 2
    psutil.Process(min(before)).kill()
    until(lambda: len(below(driver, "RayTrainWorker") - before) == 2)
    assert below(driver, "RayTrainWorker") - before <= standing
    (run,) = (tmp_path / "store" / "runs").iterdir()

    def resumed() -> list[dict[str, dict[str, float]]]:
        lines = map(json.loads, (run / "events.jsonl").read_text().splitlines())
        return [line for line in lines if line["event"] == "resumed"]

    until(lambda: bool(resumed()))
    assert resumed()[0]["startup"]["workers_s"] < 5.0  # 0.9 s on a machine with eight times the work it can do
    until(lambda: len(ready(driver)) >= 4)  # and others take their place
    driver.terminate()
    assert driver.wait(120) == 143
    assert subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, check=False).stdout == b""
