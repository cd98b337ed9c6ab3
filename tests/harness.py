"""What several integration tests share: a runner on the shared Ray, and the command line as a user calls it."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from orchestrator.cluster.connect import Session
from orchestrator.job import JobSpec
from orchestrator.job_file import load_job
from orchestrator.plan import Stage
from orchestrator.run import Outcome, run
from orchestrator.store import Store


@dataclass
class Runner:
    """Runs jobs in this process, on the shared Ray."""

    job_file: Path
    session: Session

    def job(self, *sets: str) -> JobSpec:
        return load_job(self.job_file, list(sets))

    def __call__(self, store: Path, *sets: str, until: Stage = "train") -> Outcome:
        return run(
            self.job(*sets), store=Store(store), session=self.session, until=until, while_serving=lambda *_: None
        )


@dataclass
class Result:
    """The end of a command."""

    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document on stdout."""
        return json.loads(self.stdout)  # type: ignore[no-any-return]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "WANDB_MODE": "offline", **more}


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "orchestrator.cli", *map(str, args)]


def write_words(path: Path, *, lines: int, seed: int = 1) -> Path:
    """A text of few words in no order: a tokenizer and a network have little to do."""
    words, rng = ["wind", "sail", "rope", "gull", "storm", "night", "harbour", "lamp"], random.Random(seed)
    path.write_text("\n".join(" ".join(rng.choices(words, k=9)) for _ in range(lines)))
    return path


def losses(store: Path, outcome_run: str) -> list[float]:
    lines = (store / outcome_run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["train/loss"] for line in lines]


def steps(store: Path, outcome_run: str) -> list[int]:
    lines = (store / outcome_run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["train/step"] for line in lines]


def free_port() -> int:
    """Of the loopback; free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def kill_all(driver: subprocess.Popen[str]) -> None:
    """The driver, its Ray, its workers: whatever is below it, at once."""
    try:
        family = psutil.Process(driver.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    for process in (driver, *family):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    driver.communicate()


def run_ranks(script: str, folder: Path, count: int, *more: object, limit_s: float = 240.0) -> None:
    """A program of tests/ as so many ranks, each SCRIPT RENDEZVOUS RANK COUNT FOLDER MORE; all must end well."""
    tests = Path(__file__).parent
    around = {"PYTHONPATH": str(tests.parent), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = []
    for rank in range(count):
        call = [sys.executable, tests / script, folder / "rendezvous", str(rank), str(count), folder, *map(str, more)]
        with (folder / f"log-{rank}").open("w") as log:
            environ = {**os.environ, **around, "LOCAL_RANK": str(rank)}
            processes.append(subprocess.Popen(call, env=environ, stdout=log, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(limit_s) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert codes == [0] * count, "\n".join((folder / f"log-{rank}").read_text()[-2000:] for rank in range(count))
