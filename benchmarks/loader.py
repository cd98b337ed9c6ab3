"""C5: shuffled rows of fixed length from a corpus of 1 GB, tokens a second on one core, against its peers.

    python benchmarks/loader.py [--corpus-bytes 1000000000] [--repeats 5] [--seconds 3] [--only ours,nanogpt]

Every loader gives batches of 64 rows as int64 tensors x and y [64, 1024]. Each run is a process of its own, bound to
one core; the order of loaders turns with each repeat. Token p of the corpus is p * 40503 mod 65536, so that any row can
be checked: a loader that gives a wrong row is void. The peers' packages are installed into `--environment` once.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from loader_peers import CONTEXT, FACTOR, LOADERS, ROWS, stand_in_for_torchvision

ROOT = Path(__file__).parents[1]
WARM_UP_BATCHES = 10
BYTES_A_TOKEN = 10  # uint16 in, int64 out
ENVIRONMENT = Path(tempfile.gettempdir()) / "slipway-benchmarks" / "loader"


def measure(name: str, folder: Path, seconds: float) -> dict[str, float]:
    """In the child: batches for so long, after warm-up."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    import torch

    torch.set_num_threads(1)
    began_at = time.perf_counter()
    batches = LOADERS[name][1](folder)
    for _ in range(WARM_UP_BATCHES):
        check(*next(batches))
    warm_up_s = time.perf_counter() - began_at
    spans: list[float] = []
    ends_at = time.perf_counter() + seconds
    while time.perf_counter() < ends_at:
        start = time.perf_counter()
        x, y = next(batches)
        spans.append(time.perf_counter() - start)
    check(x, y)
    spans.sort()
    return {
        "tokens_per_s": len(spans) * ROWS * CONTEXT / sum(spans),
        "p50_us": spans[len(spans) // 2] * 1e6,
        "p99_us": spans[int(len(spans) * 0.99)] * 1e6,
        "max_us": spans[-1] * 1e6,
        "batches": len(spans),
        "warm_up_s": warm_up_s,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def check(x: Any, y: Any) -> None:
    if (
        tuple(x.shape) != (ROWS, CONTEXT)
        or str(x.dtype) != "torch.int64"
        or not bool(((y - x) % 65536 == FACTOR).all())
    ):
        sys.exit("void: a batch is not what was asked for")


def copy_bytes_per_s() -> float:
    """What one core copies, counted as read and written."""
    import numpy as np

    source, target = np.ones(1 << 25), np.zeros(1 << 25)
    spans = []
    for _ in range(7):
        start = time.perf_counter()
        np.copyto(target, source)
        spans.append(time.perf_counter() - start)
    return 2 * source.nbytes / statistics.median(spans)


def peers_python(environment: Path) -> str:
    """The interpreter of the peers, which sees the project's packages after its own."""
    python = environment / "bin" / "python"
    wanted = ROOT / "benchmarks" / "peers" / "loader.txt"
    ready = environment / "ready.txt"
    if not ready.is_file() or ready.read_text() != wanted.read_text():
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--requirement", str(wanted)]
        subprocess.run(install, check=True, stderr=subprocess.DEVNULL)
        packages = next((environment / "lib").glob("python*/site-packages"))
        own = [path for path in sys.path if path.endswith("site-packages")]
        (packages / "zz_project.pth").write_text("\n".join([*own, str(ROOT)]) + "\n")
        ready.write_text(wanted.read_text())
    return str(python)


def child(python: str, script: str, *args: object, limit_s: float | None = None) -> Any:
    """Run a script's child mode; its last line is JSON, None where it failed."""
    quiet = {"RAY_DEDUP_LOGS": "0", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    done = subprocess.run(
        [python, script, "--child", *map(str, args)],
        check=False,
        timeout=limit_s,
        capture_output=True,
        text=True,
        env={**os.environ, **quiet, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    if done.returncode:
        sys.stderr.write(f"{args}: {done.stderr.strip().splitlines()[-1:]}\n")
        return None
    return json.loads(done.stdout.strip().splitlines()[-1] or "null")


def run_child(args: list[str]) -> None:
    if args[1] == "mosaic":
        stand_in_for_torchvision()
    what, name, folder, number = args
    if what == "write":
        LOADERS[name][0](Path(folder), int(number))
        sys.stdout.write("\nnull\n")
        return
    sys.stdout.write("\n" + json.dumps(measure(name, Path(folder), float(number))) + "\n")
    sys.stdout.flush()
    os._exit(0)  # loaders leave threads and processes of their own, which the system ends with this one


def compare(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    names = options.only.split(",") if options.only else list(LOADERS)
    pythons = {n: sys.executable if n in ("ours", "nanogpt") else peers_python(options.environment) for n in names}
    corpus_tokens = options.corpus_bytes // 2
    for name in names:
        folder = work / LOADERS[name][0].__name__
        if not folder.exists():
            folder.mkdir()
            child(pythons[name], __file__, "write", name, folder, corpus_tokens)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for i in range(options.repeats):
        for name in names if i % 2 == 0 else names[::-1]:  # A B B A
            folder = work / LOADERS[name][0].__name__
            if result := child(pythons[name], __file__, "measure", name, folder, options.seconds):
                found[name].append(result)
    limit = copy_bytes_per_s() / BYTES_A_TOKEN
    return {
        "benchmark": "C5",
        "machine": f"one of {os.cpu_count()} cores, {platform.processor() or platform.machine()}",
        "corpus_bytes": options.corpus_bytes,
        "limit_tokens_per_s": round(limit),
        "loaders": {name: summary(found[name], limit) for name in names},
    }


def summary(runs: list[dict[str, float]], limit: float) -> dict[str, Any]:
    if not runs:
        return {"void": True}
    medians = {key: round(statistics.median(run[key] for run in runs), 1) for key in runs[0]}
    rates = sorted(run["tokens_per_s"] for run in runs)
    return {
        **medians,
        "runs": len(runs),
        "tokens_per_s_spread": [round(rates[0]), round(rates[-1])],
        "of_limit_percent": round(100 * medians["tokens_per_s"] / limit, 1),
        "p99_by_p50": round(medians["p99_us"] / medians["p50_us"], 2),
    }


def publish(name: str, result: dict[str, Any]) -> None:
    target = ROOT / "benchmarks" / "results" / f"{name}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        run_child(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus-bytes", type=int, default=1_000_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--only", default="")
    parser.add_argument("--environment", type=Path, default=ENVIRONMENT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        publish("loader", compare(options, Path(folder)))


if __name__ == "__main__":
    main()
