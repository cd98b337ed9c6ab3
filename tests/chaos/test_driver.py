"""What is done to a command on a Ray of its own: it leaves nothing behind, and the same command goes on to the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from harness import command, environment, steps

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = 600
JOB = """\
name: signals
data:
  sources: [{{path: {text}}}]
  tokenizer: {{vocab_size: 320}}
model: {{layers: 2, width: 64, heads: 2, context: 64}}
train:
  steps: {steps}
  batch_tokens: 512
  precision: fp32
  workers: {{min: 2, max: 2}}
  checkpoint: {{every_steps: 7}}
"""


def driver_on(job: Path, store: Path, *more: str, **env: str) -> subprocess.Popen[str]:
    args = command("run", job, "--store", store, "--until", "train", "--json", *more)
    return subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(**env))


def await_moment(reached: Callable[[], bool], driver: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not reached():
        assert time.monotonic() < deadline
        assert driver.poll() is None, driver.communicate()[1]
        time.sleep(0.002)


def left_of(driver: subprocess.Popen[str]) -> list[str]:
    """What of its Ray still runs, or lies in /tmp."""
    mark = f"slipway-ray-{driver.pid}-"
    found = [str(path) for path in Path("/tmp").glob(f"{mark}*")]
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes().decode(errors="replace") if entry.name.isdigit() else ""
        except OSError:
            continue
        found += [line] if mark in line else []
    return found


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text("\n".join(f"{i} ropes, {i * i} sails and a gull" for i in range(20_000)))
    path = tmp_path / "driver.yaml"
    path.write_text(JOB.format(text=tmp_path / "text.txt", steps=STEPS))
    return path


def assert_finished(store: Path, driver: subprocess.Popen[str]) -> None:
    out, err = driver.communicate(timeout=250)
    assert driver.returncode == 0, err
    document = json.loads(out)
    assert steps(store, document["run"]) == list(range(1, STEPS + 1))
    assert not [path for path in store.rglob("*") if ".tmp-" in path.name]


Strike = Callable[[subprocess.Popen[str]], None]


def once(driver: subprocess.Popen[str]) -> None:
    driver.terminate()


def twice(driver: subprocess.Popen[str]) -> None:
    driver.terminate()
    time.sleep(0.3)
    driver.terminate()


def everywhere(driver: subprocess.Popen[str]) -> None:
    """As a machine that shuts down, or Slurm: the driver, its Ray and the workers."""
    time.sleep(1.0)  # some steps beyond the checkpoint
    for process in psutil.Process(driver.pid).children(recursive=True):
        process.terminate()
    driver.terminate()


def test_sigterm_at_any_moment_ends_with_143_and_leaves_nothing(job: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"

    def events(name: str) -> int:
        return sum(path.read_text().count(f'"event": "{name}"') for path in store.glob("runs/*/events.jsonl"))

    def ray_starts(driver: subprocess.Popen[str]) -> bool:
        return bool(list(Path("/tmp").glob(f"slipway-ray-{driver.pid}-*/session_latest")))

    moments: list[tuple[str, Callable[[subprocess.Popen[str], int, int], bool], Strike]] = [
        ("Ray starts", lambda driver, _launched, _begun: ray_starts(driver), once),
        ("preparation", lambda *_: bool(list(store.glob("datasets/.work-*/read"))), once),
        ("set-up", lambda _driver, launched, _begun: events("launched") > launched, once),
        ("steps", lambda _driver, _launched, begun: events("first-step") > begun, once),
        ("a save", lambda *_: bool(list(store.glob("runs/*/checkpoints/*.tmp-*"))), once),
        ("twice", lambda _driver, _launched, begun: events("first-step") > begun, twice),
        ("every process", lambda _driver, _launched, begun: events("first-step") > begun, everywhere),
    ]
    for name, reached, strike in moments:
        launched, begun = events("launched"), events("first-step")
        driver = driver_on(job, store)
        await_moment(lambda: reached(driver, launched, begun), driver)  # noqa: B023 - called within the turn
        below = psutil.Process(driver.pid).children(recursive=True)
        strike(driver)
        out, err = driver.communicate(timeout=120)
        assert driver.returncode == 143, (name, err)
        assert json.loads(out)["error"]["exit_code"] == 143, (name, out)
        assert "Traceback" not in err, (name, err)
        assert left_of(driver) == [], name
        assert psutil.wait_procs(below, timeout=5)[1] == [], name
    (run,) = store.glob("runs/*")  # the last of these had time to save, although all were told to end
    saved = max(int(path.name.removeprefix("step-")) for path in run.glob("checkpoints/step-*") if path.suffix == "")
    assert saved == len((run / "metrics.jsonl").read_bytes().splitlines())
    assert_finished(store, driver_on(job, store))


def shared_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir()}


def test_nothing_outlives_a_driver_that_is_killed(job: Path, tmp_path: Path) -> None:
    store, before = tmp_path / "store", shared_memory()
    driver = driver_on(job, store)
    await_moment(lambda: bool(list(store.glob("runs/*/checkpoints/step-*/COMMITTED"))), driver)
    below = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.communicate()
    next_one = driver_on(job, store)  # at once: nobody waits for the old one's end
    assert psutil.wait_procs(below, timeout=60)[1] == []
    assert_finished(store, next_one)
    assert left_of(driver) == []  # its folder too: the next driver has swept it
    assert shared_memory() <= before


def test_a_worker_alone_that_is_stopped_is_found(job: Path, tmp_path: Path) -> None:
    """Its own watchdog is stopped with it, and no other rank waits for it."""
    store = tmp_path / "store"
    alone = ("--set", "train.workers={min: 1, max: 1}")
    driver = driver_on(job, store, *alone, RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S="10")
    await_moment(lambda: bool(list(store.glob("runs/*/checkpoints/step-*/COMMITTED"))), driver)
    (note,) = store.glob("runs/*/workers/rank-00000.json")
    os.kill(json.loads(note.read_text())["pid"], signal.SIGSTOP)
    assert_finished(store, driver)
    (log,) = store.glob("runs/*/events.jsonl")
    (failed,) = (event for event in map(json.loads, log.read_text().splitlines()) if event["event"] == "failed")
    assert (failed["class"], failed["action"]) == ("hang", "retry")
