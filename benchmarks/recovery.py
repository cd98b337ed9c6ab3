"""C10: a worker is killed or stopped: time to the next new step, and the share of useful time with a kill a minute.

    python benchmarks/recovery.py [--minutes 10] [--every-s 60] [--save-every-steps 20] [--only slipway,torchrun]

Ours is `slipway run` with two workers and a Ray of its own, as it comes. Beside it the same network in a plain loop:
under `torchrun --max-restarts`, and in bare Ray Train with `FailureConfig`. All save every so many steps, all meet the
same faults at the same moments after their first step; the order turns with each repeat.

A worker is killed (`SIGKILL`) every minute; in a run of its own one is stopped (`SIGSTOP`) once. Recovered is who has
finished a step that was not finished before. Useful time is that of the steps that were new, each as long as the median
step of its own system, by the time from the first step on: what is redone, saved, waited for and started is the rest.
Takes about 15 minutes for each system. Leave the machine alone meanwhile: a busy one starts twice as slowly.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loader import publish
from recovery_watch import PEERS, ROOT, START_LIMIT_S, STOP_LIMIT_S, Observed, System, environment, observe
from training import machine

SLIPWAY = [sys.executable, "-m", "orchestrator.cli"]
STOPPED_AT_S = 20.0
SETTINGS = {
    "name": "recovery",
    "train.steps": 100_000,
    "train.workers": "{min: 2, max: 2, cpus: 1}",
    "train.evaluate.every_steps": "null",
    "train.log_every_steps": 20,
}


def systems(folder: Path, every_steps: int) -> dict[str, System]:
    """What is compared; each has a folder of its own, and saves every so many steps."""
    store = folder / "slipway"
    settings = {**SETTINGS, "train.checkpoint.every_steps": every_steps}
    job = [str(ROOT / "jobs" / "quickstart.yaml"), "--store", str(store)]
    job += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    runs = store / "runs"
    found = {
        "slipway": System(
            [*SLIPWAY, "run", *job, "--until", "train"],
            lambda: next(iter(runs.glob("*/metrics.jsonl")), None),
            "RayTrainWorker",
            lambda: prepare(job, runs),
        )
    }
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, command, mark in (
        ("torchrun", [*torchrun, "--max-restarts", "1000", str(PEERS / "recovery_loop.py")], "recovery_loop.py"),
        ("ray-train", [sys.executable, str(PEERS / "recovery_ray.py")], "RayTrainWorker"),
    ):
        own = folder / name
        found[name] = System([*command, str(own), str(every_steps)], log_in(own), mark, lambda own=own: renew(own))  # type: ignore[misc]
    return found


def log_in(folder: Path) -> Callable[[], Path]:
    return lambda: folder / "steps.jsonl"


def renew(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def prepare(job: list[str], runs: Path) -> None:
    """The dataset once; a run anew each time."""
    shutil.rmtree(runs, ignore_errors=True)
    subprocess.run(
        [*SLIPWAY, "prepare", *job, "--json"], check=True, stdout=subprocess.DEVNULL, env=environment(), cwd=ROOT
    )


def summary(killed: list[Observed], stopped: list[Observed]) -> dict[str, Any]:
    """Of one system's runs."""
    faults = [fault for run in killed for fault in run.faults]
    spans_s = [fault.recovered_at - fault.at for fault in faults if fault.recovered_at is not None]
    stops_s = [
        fault.recovered_at - fault.at for run in stopped for fault in run.faults if fault.recovered_at is not None
    ]
    useful_s = sum(run.new_steps * run.step_s for run in killed)
    watched_s = sum(run.seconds for run in killed)
    starting_s = sum(fault.back_at - fault.at for fault in faults if fault.back_at is not None)
    return {
        "kills": len(faults),
        "not_recovered": len(faults) - len(spans_s),
        "recovered_s": round(statistics.median(spans_s), 2) if spans_s else None,
        "recovered_s_spread": [round(min(spans_s), 2), round(max(spans_s), 2)] if spans_s else None,
        "stopped_recovered_s": round(statistics.median(stops_s), 1) if stops_s else None,
        "most_redone_steps": max((fault.redone for fault in faults if fault.redone is not None), default=None),
        "useful_percent": round(100 * useful_s / watched_s, 1),
        "useful_of_what_starts_leave_percent": round(100 * useful_s / (watched_s - starting_s), 1),
        "new_steps": sum(run.new_steps for run in killed),
        "step_ms": round(statistics.median(run.step_s for run in killed) * 1e3, 1),
        "start_s": round(statistics.median(run.start_s for run in [*killed, *stopped]), 1),
        "runs": len(killed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--every-s", type=float, default=60.0)
    parser.add_argument("--save-every-steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--no-stop", action="store_true", help="leave out the run in which a worker is stopped")
    options = parser.parse_args()
    seconds = 60 * options.minutes
    moments_s = [options.every_s * (i + 0.5) for i in range(int(seconds / options.every_s))]
    with tempfile.TemporaryDirectory(prefix="recovery-") as folder:
        found = systems(Path(folder), options.save_every_steps)
        names = options.only.split(",") if options.only else list(found)
        killed: dict[str, list[Observed]] = {name: [] for name in names}
        stopped: dict[str, list[Observed]] = {name: [] for name in names}
        for i in range(options.repeats):
            for name in names if i % 2 == 0 else names[::-1]:
                killed[name].append(observe(found[name], moments_s, signal.SIGKILL, seconds=seconds, seed=i))
                sys.stderr.write(f"{name}, killed: {summary(killed[name], [])}\n")
                if not options.no_stop:
                    limit_s = STOPPED_AT_S + STOP_LIMIT_S + START_LIMIT_S
                    stop = observe(
                        found[name], moments_s=[STOPPED_AT_S], signum=signal.SIGSTOP, seconds=limit_s, seed=i
                    )
                    stopped[name].append(stop)
    result = {
        "benchmark": "C10",
        "machine": machine(2),
        "minutes": options.minutes,
        "a_kill_every_s": options.every_s,
        "saved_every_steps": options.save_every_steps,
        "stopped_waited_for_s": STOP_LIMIT_S,
        "rows": {name: summary(killed[name], stopped[name]) for name in names},
    }
    publish("recovery", result)


if __name__ == "__main__":
    main()
