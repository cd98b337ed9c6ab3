"""C9: from a committed training checkpoint to the first token that a service gives of it, while the run trains on.

    python benchmarks/handoff.py [--repeats 3] [--swaps 3] [--every-s 45] [--threads 1] [--only ours,peer]

The Llama of C11 (30M parameters) trains in bf16 on one thread and saves every so many seconds. `first`: no service runs
yet; from the moment at which it is asked for until its first token. `handoff`: a service runs and a new checkpoint
stands; from its marker (of the peer: from `latest`, the last file that DeepSpeed writes) until the first token of the
new version, asked for every 20 ms. Ours has a marker for the weights before the one for all: `weights` is the time from
that one, and the hand-off may be done when the second comes (0 s then). Meanwhile two streams are under way: how many
failed, the longest wait for a first token, and the longest time between two tokens, beside the same before.

Ours: `slipway serve RUN --follow --detach`. The peer: DeepSpeed's ZeRO 2 trains; its `zero_to_fp32`, `from_pretrained`
in a deployment, and `serve.run` over the one that runs. Its driver has Ray and Serve imported before its time begins,
and notices a checkpoint within 5 ms. Each run starts anew; the order turns with each repeat.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import handoff_peer
from decode import SHAPE
from handoff_clients import LIMIT_S, Service, longest_ms, streaming
from handoff_training import LOOK_EVERY_S, Saved, committed, training, wait
from loader import publish
from training import machine

from orchestrator.checkpoint.layout import step_of
from orchestrator.checkpoint.reader import newest_weights

ROOT = Path(__file__).parents[1]
ROWS = ["ours", "peer"]
NAME = "llama-30m"
STREAMS = 2
SETTLE_S = 2.0
"""Streams that waited for the new version have a token by then."""
RUN_LIMIT_S = 1800
JOB = {
    "name": NAME,
    "data": {
        "sources": [{"path": "${python:stdlib}", "include": "*.py", "format": "text"}],
        "tokenizer": {"train": "bpe", "vocab_size": 320},
        "split": {"validation": 0.01, "test": 0.01},
    },
    "model": {"kind": "gpt", **SHAPE},
    "track": {"wandb": {"mode": "disabled"}},
}
SLIPWAY = [sys.executable, "-m", "orchestrator.cli"]
_BLACKOUT = re.compile(r"(\d+) ms without a token")


def job(options: argparse.Namespace) -> dict[str, Any]:
    """The job of the run that is followed; it never ends by itself."""
    train = {
        "steps": 1_000_000,
        "batch_tokens": handoff_peer.ROWS * SHAPE["context"],
        "precision": "bf16",
        "zero": {"stage": 2},
        "workers": {"min": 1, "max": 1, "cpus": 1},
        "checkpoint": {"every_s": options.every_s, "keep_last": 3},
    }
    return {**JOB, "train": train, "serve": {"cpus": options.threads, "precision": "bf16"}}


def handoffs(
    service: Service,
    options: argparse.Namespace,
    *,
    next_checkpoint: Callable[[], Saved],
    bring: Callable[[], object],
    blackout_ms: Callable[[str], int | None],
) -> dict[str, Any]:
    """What clients have of some versions that follow each other.

    Args:
        service: which answers already.
        options: of the benchmark.
        next_checkpoint: waits until the weights of one can be had.
        bring: what an operator does then; returns when that is done.
        blackout_ms: what the service says of the swap to a version.
    """
    rows = []
    with streaming(service, STREAMS) as streams:
        version, quiet_at = service.wait_for(other_than=None)
        for _ in range(options.swaps):
            saved = next_checkpoint()
            bring()
            version, came_at = service.wait_for(other_than=version)
            committed_at = saved.committed_at()
            time.sleep(SETTLE_S)
            settled_at = time.monotonic()
            row = {
                "handoff_s": max(0.0, came_at - committed_at),
                "weights_s": came_at - saved.weights_at,
                "wait_ms": longest_ms(streams.waits, saved.weights_at, settled_at),
                "gap_ms": longest_ms(streams.gaps, saved.weights_at, settled_at),
                "usual_gap_ms": longest_ms(streams.gaps, quiet_at, saved.weights_at),
                "blackout_ms": blackout_ms(version),
            }
            rows.append(row)
            quiet_at = settled_at
    return {"swaps": rows, "streams": streams.answered, "failures": streams.failures}


def run_ours(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """`slipway run` and `slipway serve --follow`."""
    from orchestrator.serve.host import detached, records

    (folder / "job.yaml").write_text(json.dumps(job(options)), encoding="utf-8")
    store = folder / "store"
    train = [*SLIPWAY, "run", str(folder / "job.yaml"), "--store", str(store), "--until", "train"]
    with ThreadPoolExecutor(1) as pool, training(train, folder) as run:

        def newest(than: int, find: Callable[[Path], Path | None] = committed) -> tuple[Path, int] | None:
            found = ((path, step_of(newest.name)) for path in of_run() if (newest := find(path)) is not None)
            return next(((path, step) for path, step in found if step is not None and step > than), None)

        def of_run() -> Iterator[Path]:
            return (store / "runs").glob(f"{NAME}-*")

        path, step = wait(lambda: newest(0), run, folder / "train.log")
        began = time.monotonic()
        serve = [*SLIPWAY, "serve", path.name, "--store", str(store), "--port", str(options.port), "--follow"]
        subprocess.run([*serve, "--detach", "--json"], check=True, capture_output=True)
        try:
            service = Service(f"http://127.0.0.1:{options.port}/v1/completions", NAME)
            first_s = service.wait_for(other_than=None)[1] - began
            history = records.history_path(options.port)

            def caught_up() -> int | None:
                served = step_of(Path(last_line(history)["export"]).name) or 0
                return None if newest(served, newest_weights) else served

            step = wait(caught_up, run, folder / "train.log")

            def next_checkpoint() -> Saved:
                nonlocal step
                before = step
                _, step = wait(lambda: newest(before, newest_weights), run, folder / "train.log")
                weights_at = time.monotonic()
                return Saved(weights_at, pool.submit(stood).result)

            def stood() -> float:
                wait(lambda: newest(step - 1), run, folder / "train.log")
                return time.monotonic()

            def blackout_ms(version: str) -> int | None:
                told = promoted(history, version, step)
                return int(found[1]) if (found := _BLACKOUT.search(told)) else None

            found = handoffs(
                service, options, next_checkpoint=next_checkpoint, bring=lambda: None, blackout_ms=blackout_ms
            )
        finally:
            detached.stop(options.port)
    return {"first_s": first_s, **found}


def promoted(history: Path, version: str, step: int) -> str:
    """What a service says of the promotion of a version; it writes that a moment after the first token.

    Raises:
        RuntimeError: it is of another step.
    """
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        last = last_line(history)
        if (last["event"], last["version"]) == ("promoted", version):
            break
        time.sleep(LOOK_EVERY_S)
    if step_of(Path(last["export"]).name) != step:
        raise RuntimeError(f"{version} is not step {step}: {last}; give a larger --every-s")
    return str(last["reason"])


def last_line(history: Path) -> dict[str, Any]:
    """What has become of a service's versions at last."""
    line: dict[str, Any] = json.loads(history.read_text(encoding="utf-8").splitlines()[-1])
    return line


def run_peer(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """DeepSpeed, transformers and Ray Serve."""
    import ray
    from ray import serve

    checkpoints = folder / "checkpoints"
    checkpoints.mkdir()
    with training([sys.executable, handoff_peer.__file__, str(checkpoints), str(options.every_s)], folder) as run:
        tag = wait(lambda: handoff_peer.newest(checkpoints), run, folder / "train.log")

        def bring() -> None:
            whole = handoff_peer.collect(checkpoints, tag)
            serve.run(handoff_peer.application(whole, tag, threads=options.threads), route_prefix="/")

        def other() -> str | None:
            found = handoff_peer.newest(checkpoints)
            return None if found == tag else found

        def next_checkpoint() -> Saved:
            nonlocal tag
            tag = wait(other, run, folder / "train.log")
            stood_at = time.monotonic()
            return Saved(stood_at, lambda: stood_at)

        began = time.monotonic()
        ray.init(num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        serve.start(http_options={"host": "127.0.0.1", "port": options.port})
        bring()
        service = Service(f"http://127.0.0.1:{options.port}/", NAME)
        first_s = service.wait_for(other_than=None)[1] - began
        tag = handoff_peer.newest(checkpoints) or tag
        found = handoffs(service, options, next_checkpoint=next_checkpoint, bring=bring, blackout_ms=lambda _: None)
        serve.shutdown()  # type: ignore[no-untyped-call]
    return {"first_s": first_s, **found}


RUNNERS = {"ours": run_ours, "peer": run_peer}


def measure(name: str) -> dict[str, Any] | None:
    """One run in a process of its own; None where it failed."""
    with tempfile.TemporaryDirectory(prefix="handoff-") as folder:
        args = [sys.executable, __file__, "--child", name, "--folder", folder, *sys.argv[1:]]
        # Ray starts its workers at 15 unless told otherwise; ours are told.
        fair = {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0", "DS_ACCELERATOR": "cpu"}
        paths = {"PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}", "XDG_STATE_HOME": f"{folder}/state"}
        env = {**os.environ, **fair, **paths}
        done = subprocess.run(args, check=False, capture_output=True, text=True, env=env, timeout=RUN_LIMIT_S)
    if done.returncode:
        sys.stderr.write(f"{name}: {done.stderr[-3000:]}\n")
        return None
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    sys.stderr.write(f"{name}: {found}\n")
    return found


def compare(options: argparse.Namespace) -> dict[str, Any]:
    names = options.only.split(",") if options.only else ROWS
    runs: dict[str, list[dict[str, Any]]] = {}
    for i in range(options.repeats):
        for name in names if i % 2 == 0 else names[::-1]:
            if found := measure(name):
                runs.setdefault(name, []).append(found)
    return {
        "benchmark": "C9",
        "machine": machine(options.threads),
        "saved_every_s": options.every_s,
        "rows": {name: summary(found) for name, found in runs.items()},
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of the times, the longest of what nobody should notice."""
    swaps = [swap for run in runs for swap in run["swaps"]]
    spans_s = sorted(swap["handoff_s"] for swap in swaps)
    return {
        "first_s": round(statistics.median(run["first_s"] for run in runs), 2),
        "handoff_s": round(statistics.median(spans_s), 2),
        "handoff_s_spread": [round(spans_s[0], 2), round(spans_s[-1], 2)],
        "weights_s": round(statistics.median(swap["weights_s"] for swap in swaps), 2),
        "blackout_ms": max((s["blackout_ms"] for s in swaps if s["blackout_ms"] is not None), default=None),
        "wait_ms": round(max(swap["wait_ms"] for swap in swaps)),
        "gap_ms": round(max(swap["gap_ms"] for swap in swaps)),
        "usual_gap_ms": round(max(swap["usual_gap_ms"] for swap in swaps)),
        "streams": sum(run["streams"] for run in runs),
        "failed": sum(len(run["failures"]) for run in runs),
        "swaps": len(swaps),
        "runs": len(runs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--swaps", type=int, default=3, help="new checkpoints in each run")
    parser.add_argument("--every-s", type=float, default=45.0, help="between two checkpoints")
    parser.add_argument("--threads", type=int, default=1, help="of the service")
    parser.add_argument("--port", type=int, default=8767)
    parser.add_argument("--only", default="", help="such as ours,peer")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        found = RUNNERS[options.child](options.folder, options)
        sys.stdout.write("\n" + json.dumps(found) + "\n")
        sys.stdout.flush()
        os._exit(0)  # threads and processes end with this one
    publish("handoff", compare(options))


if __name__ == "__main__":
    main()
