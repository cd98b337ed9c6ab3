"""C1: from the command to the first finished training step, and where the time goes.

    python benchmarks/start.py [--repeats 3]

Ours: `slipway run` with a Ray of its own, two workers. Beside it, in the same run: the same worker under torchrun,
without Ray, which is what a start costs at least (imports, DeepSpeed, the first step).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
JOB = [str(ROOT / "jobs" / "quickstart.yaml"), "--set", "train.steps=2", "--set", "train.schedule.warmup_steps=1"]
SLIPWAY = [sys.executable, "-m", "orchestrator.cli"]
POLL_S = 0.02


def first_step_s(args: list[str], run: Path) -> float:
    """Start a command, wait for the run's first line of metrics, let it end; seconds from start to line."""
    began_at = time.monotonic()
    with subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()) as process:
        while not (run / "metrics.jsonl").is_file() or not (run / "metrics.jsonl").stat().st_size:
            if process.poll() is not None:
                sys.exit(f"{args} ended with {process.returncode} before its first step")
            time.sleep(POLL_S)
        took_s = time.monotonic() - began_at
        process.wait()
    return took_s


def environment() -> dict[str, str]:
    return {**os.environ, "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        common = [*JOB, "--store", folder, "--json"]
        subprocess.run([*SLIPWAY, "prepare", *common], check=True, stdout=subprocess.DEVNULL, env=environment())
        run = next(Path(folder, "runs").iterdir())
        clean = Path(folder, "clean")
        shutil.copytree(run, clean)
        torchrun = [str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node", "2", "-m", "--"]
        peers = {
            "slipway run": [*SLIPWAY, "train", *common],
            "torchrun": [*torchrun, "orchestrator.train.worker", "--run", str(run)],
        }
        times: dict[str, list[float]] = {name: [] for name in peers}
        spans: list[dict[str, float]] = []
        for i in range(repeats):
            for name in list(peers) if i % 2 == 0 else list(peers)[::-1]:  # A B B A
                shutil.rmtree(run)
                shutil.copytree(clean, run)
                times[name].append(round(first_step_s(peers[name], run), 2))
                if name == "slipway run":
                    event = json.loads((run / "events.jsonl").read_text().splitlines()[0])
                    spans.append(event["startup"])
    result = {
        "benchmark": "C1",
        "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}",
        "to_first_step_s": times,
        "median_s": {name: statistics.median(values) for name, values in times.items()},
        "slipway_startup_s": spans,
    }
    target = ROOT / "benchmarks" / "results" / "start.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
