"""A run that needs no training: a program that writes what a driver and its worker write, quickly."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from evaluation_fixtures import job_file, lay_out_dataset

from orchestrator import presence
from orchestrator.data.dataset import open_dataset
from orchestrator.job_file import job_to_yaml, load_job
from orchestrator.objectives.task import make_feed
from orchestrator.store import Store, write_json

RUN = '''\
"""Steps of a hundredth of a second, a checkpoint every ten; SIGTERM saves. RUN NUMBERS STEPS WHAT-IS-WRONG"""
import math, shutil, signal, sys, time
from pathlib import Path
import numpy as np
from orchestrator import presence
from orchestrator.attempts import writing_run
from orchestrator.checkpoint import layout
from orchestrator.checkpoint.reader import newest_checkpoint
from orchestrator.store import commit, delete_committed, is_committed, new_tmp, write_json
from orchestrator.track import events
from orchestrator.track.metric_log import MetricLog, redone_above
from orchestrator.track.samples import SampleLog

run, numbers, steps, wrong = Path(sys.argv[1]), np.load(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))


def save(step, attempt):
    final = layout.step_folder(layout.checkpoints_folder(run), step)
    if not is_committed(final):
        tmp = new_tmp(final)
        tmp.mkdir(parents=True)
        write_json(tmp / layout.PROGRESS, {"step": step})
        (tmp / layout.WEIGHTS).write_bytes(bytes(999))
        about = layout.manifest(step=step, world_size=1, zero_stage=0, precision="fp32", attempt=attempt, versions={})
        commit(tmp, final, about)
    events.record(run, "checkpoint", step=step, attempt=attempt, path=final.name, seconds=0.01)
    for old in sorted(final.parent.glob("step-*"))[:-4]:
        delete_committed(old)


with writing_run(run) as attempt, presence.present(run, rank=0, attempt=attempt.number):
    presence.note_command(run)
    found = newest_checkpoint(run, say=print)
    step = found.step if found else 0
    redone = redone_above(run, step)
    events.record(
        run, "resumed" if step else "started", step=step, attempt=attempt.number, workers=1, startup={"engine_s": 0.1},
        recomputed={"steps": redone.steps, "seconds": redone.seconds}, last_line=None,
    )
    log, samples = MetricLog(run, attempt=attempt, resumed_step=step), SampleLog(run, attempt=attempt.number, rank=0)
    behind = 1 if "repeats" in wrong and step else 0
    high = 3.0 if "forgets" in wrong and step else 0.0
    while step < steps and not told:
        time.sleep(0.01)
        step += 1
        if wrong == "dies" and step == 40:
            sys.exit(1)
        samples.append(step, 0, numbers[step - 1 - behind])
        log.append({"train/step": step, "train/loss": 2.0 + math.sin(step) / 10 + high, "time/step_s": 0.01})
        if step % 10 == 0 and not (wrong == "hangs" and attempt.number > 1 and time.sleep(60)):
            samples.sync()
            save(step, attempt.number)
    samples.sync()
    save(step, attempt.number)
    events.record(run, "ended", attempt=attempt.number, how="stopped" if told else "finished")
sys.exit(143 if told else 0)
'''
Start = Callable[..., Path]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, a job, and the numbers of the samples of many steps."""
    folder = tmp_path_factory.mktemp("store")
    job = load_job(job_file(folder), [])
    dataset = open_dataset(lay_out_dataset(Store(folder), job))
    (folder / "run.py").write_text(RUN)
    with contextlib.ExitStack() as leases:
        feed = make_feed(job, dataset, leases)
        np.save(folder / "numbers.npy", np.stack([feed.samples(step) for step in range(1, 3001)]))
    (folder / "job.yaml").write_text(job_to_yaml(job))
    return folder


@pytest.fixture
def start(store: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts a run of so many steps; its folder, once it makes steps. Who drives it in the end is ended."""
    runs: list[Path] = []
    processes: list[subprocess.Popen[bytes]] = []

    def begin(steps: int = 3000, wrong: str = "") -> Path:
        run = tmp_path / "runs" / f"tiny-{len(runs)}"
        run.mkdir(parents=True)
        runs.append(run)
        (run / "job.yaml").write_text((store / "job.yaml").read_text())
        (dataset,) = (store / "datasets").iterdir()
        write_json(run / "run.json", {"format": 1, "hash": "x", "dataset": str(dataset)})
        call = [sys.executable, str(store / "run.py"), str(run), str(store / "numbers.npy"), str(steps), wrong]
        processes.append(subprocess.Popen(call, stdout=subprocess.DEVNULL))
        until = time.monotonic() + 30
        while not (run / "metrics.jsonl").is_file() and time.monotonic() < until:
            time.sleep(0.01)
        return run

    yield begin
    for process in processes:
        process.kill()
        process.wait()
    for run in runs:
        last = presence.read_command(run)
        if last is not None:
            last.process.send(signal.SIGKILL)
