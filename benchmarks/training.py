"""C3 and C2: tokens a second in training, and what the loop around a step costs, against its peers.

    python benchmarks/training.py [--repeats 3] [--steps 12] [--only gpt/bf16] [--threads 2]
    python benchmarks/training.py --orchestration [--repeats 3]

Every run is a process of its own; the order turns with each repeat. All begin with the same weights and see the same
batches: a row whose losses of the first steps differ from the plain loop's is void. The first steps are warm-up
(compilation among it). C2 is measured with a network of some 10,000 parameters, so that the libraries' share is most
of a step: time a step less that of a bare loop over the same network. Needs nothing but a CPU.
"""

from __future__ import annotations

import argparse
import itertools
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

from training_case import SHAPES, Case
from training_peers import RUNS

ROOT = Path(__file__).parents[1]
ENVIRONMENT = Path(tempfile.gettempdir()) / "slipway-benchmarks" / "training"
WARM_UP_STEPS = 4
COMPARED_STEPS = 4
TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2}
LIMIT_S = 300
ROWS = {
    "gpt/bf16": ["ours", "plain", "hf-trainer", "lightning", "accelerate", "ours-compiled", "plain-compiled"],
    "gpt/fp32": ["ours", "plain", "hf-trainer"],
    "bert/bf16": ["ours", "plain", "hf-trainer"],
}
ORCHESTRATION = {
    "ours": "ours-engine",
    "ours-untracked": "ours-engine",
    "hf-trainer": "plain",
    "lightning": "plain",
    "accelerate": "plain",
}
"""A loop, and the bare loop that it is compared with. The peers report to nobody; `ours` logs every step to W&B too."""


def run_child(name: str, model: str, precision: str, steps: int, threads: int) -> None:
    """One run; prints its losses and the spans of its steps."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    began_at = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = RUNS[name](Case(model, precision, steps, Path(folder)))
    ended = found.ended_at
    result = {
        "losses": [float(loss) for loss in found.losses[:COMPARED_STEPS]],
        "spans_s": differences(ended[WARM_UP_STEPS - 1 :]),
        "cpu_s": differences(found.cpu_at[WARM_UP_STEPS - 1 :]),
        "warm_up_s": ended[WARM_UP_STEPS - 1] - began_at,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    sys.stdout.write("\n" + json.dumps(result) + "\n")
    sys.stdout.flush()
    os._exit(0)  # libraries leave threads behind, which end with the process


def milliseconds(run: dict[str, Any], clock: str) -> float:
    """Of the median step."""
    return statistics.median(run[clock]) * 1e3


def differences(moments: list[float]) -> list[float]:
    return [after - before for before, after in itertools.pairwise(moments)]


def measure(name: str, model: str, precision: str, steps: int, threads: int) -> dict[str, Any] | None:
    """One run in a process of its own; None where it failed."""
    python = sys.executable if name.startswith("ours") else str(ENVIRONMENT / "bin" / "python")
    args = [python, __file__, "--child", name, model, precision, str(steps), str(threads)]
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": str(threads),
        "WANDB_SILENT": "true",
        "HF_HUB_OFFLINE": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(ENVIRONMENT.parent / "inductor"),
    }
    done = subprocess.run(args, check=False, capture_output=True, text=True, env=env, timeout=LIMIT_S)
    if done.returncode:
        sys.stderr.write(f"{name} {model} {precision}: {done.stderr.strip().splitlines()[-1:]}\n")
        return None
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    wall, cpu = (milliseconds(found, clock) for clock in ("spans_s", "cpu_s"))
    sys.stderr.write(f"{name} {model} {precision}: {wall:.1f} ms, {cpu:.1f} of CPU\n")
    return found


def make_environment() -> None:
    """The peers' packages, before the project's own on the path."""
    wanted = ROOT / "benchmarks" / "peers" / "training.txt"
    ready = ENVIRONMENT / "ready.txt"
    if ready.is_file() and ready.read_text() == wanted.read_text():
        return
    subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
    python = str(ENVIRONMENT / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--requirement", str(wanted)], check=True)
    packages = next((ENVIRONMENT / "lib").glob("python*/site-packages"))
    own = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "zz_project.pth").write_text("\n".join([*own, str(ROOT)]) + "\n")
    ready.write_text(wanted.read_text())


def matmul_flops_per_s(precision: str, threads: int, clock: str) -> float:
    """The best that a product in the shape of the network's gives: [2048, 896] by [896, 896]."""
    code = (
        "import sys, time, torch\n"
        f"torch.set_num_threads({threads})\n"
        f"x, w = torch.randn(2048, 896), torch.randn(896, 896)\n"
        f"x, w = (t.to(torch.{'bfloat16' if precision == 'bf16' else 'float32'}) for t in (x, w))\n"
        "best = 9.0\n"
        "for _ in range(200):\n"
        f"    start = time.{clock}(); x @ w; best = min(best, time.{clock}() - start)\n"
        "print(2 * 2048 * 896 * 896 / best)\n"
    )
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=env)
    return float(done.stdout)


def flops_per_token(model: str) -> float:
    """6 N + 12 L D T; an encoder's head judges the masked tokens alone."""
    case = Case(model, "bf16", 1, ROOT)
    flops = case.config.training_flops_per_token()
    if model == "bert":
        flops += round(6 * 0.15 * case.config.head_matmul_parameters("mlm"))
    return float(flops)


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """C3."""
    cases = options.only.split(",") if options.only else list(ROWS)
    clock = "process_time" if options.cpu_time else "perf_counter"
    rows: dict[str, Any] = {}
    limits: dict[str, float] = {}
    for case in cases:
        model, precision = case.split("/")
        before = matmul_flops_per_s(precision, options.threads, clock)
        names = [name for name in ROWS[case] if name in (options.names or name).split(",")]
        runs: dict[str, list[dict[str, Any]]] = {}
        for i in range(options.repeats):
            for name in names if i % 2 == 0 else names[::-1]:
                if time.monotonic() > options.ends_at:
                    break
                if found := measure(name, model, precision, options.steps, options.threads):
                    runs.setdefault(name, []).append(found)
        limits[case] = max(before, matmul_flops_per_s(precision, options.threads, clock))
        tokens = 8 * SHAPES[model]["context"]
        for name, found in runs.items():
            row = summary(found, runs.get("plain", found), tokens, TOLERANCE[precision])
            rate = tokens * 1e3 / row["cpu_ms_a_step"] if options.cpu_time else row["tokens_per_s"]
            row["of_matmul_percent"] = round(100 * rate * flops_per_token(model) / limits[case], 1)
            rows[f"{case}/{name}"] = row
    return {
        "benchmark": "C3",
        "clock": "CPU" if options.cpu_time else "wall",
        "machine": machine(options.threads),
        "matmul_gflops_per_s": {case: round(limit / 1e9) for case, limit in limits.items()},
        "rows": rows,
    }


def summary(runs: list[dict[str, Any]], plain: list[dict[str, Any]], tokens: int, tolerance: float) -> dict[str, Any]:
    medians = sorted(statistics.median(run["spans_s"]) for run in runs)
    losses, expected = runs[0]["losses"], plain[0]["losses"]
    apart = max(abs(one / other - 1) for one, other in zip(losses, expected, strict=True))
    return {
        "tokens_per_s": round(tokens / statistics.median(medians)),
        "tokens_per_s_spread": [round(tokens / medians[-1]), round(tokens / medians[0])],
        "cpu_ms_a_step": round(statistics.median(milliseconds(run, "cpu_s") for run in runs), 1),
        "cpu_ms_spread": [round(pick(milliseconds(run, "cpu_s") for run in runs), 1) for pick in (min, max)],
        "warm_up_s": round(statistics.median(run["warm_up_s"] for run in runs), 1),
        "peak_mb": round(max(run["peak_mb"] for run in runs)),
        "runs": len(runs),
        "losses": [round(loss, 5) for loss in losses],
        "losses_apart": float(f"{apart:.1e}"),
        "void": apart > tolerance,
    }


def orchestration(options: argparse.Namespace) -> dict[str, Any]:
    """C2."""
    names = [*ORCHESTRATION, *sorted(set(ORCHESTRATION.values()))]
    spans: dict[str, list[float]] = {}
    for i in range(options.repeats):
        for name in names if i % 2 == 0 else names[::-1]:
            if time.monotonic() > options.ends_at:
                break
            if found := measure(name, "tiny", "fp32", 400, 1):
                spans.setdefault(name, []).append(milliseconds(found, "cpu_s" if options.cpu_time else "spans_s"))
    step = {name: statistics.median(found) for name, found in spans.items()}
    return {
        "benchmark": "C2",
        "clock": "CPU" if options.cpu_time else "wall",
        "machine": machine(1),
        "rows": {
            name: {
                "ms_a_step": round(step[name], 3),
                "bare_ms_a_step": round(step[bare], 3),
                "cost_ms": round(step[name] - step[bare], 3),
                "spread_ms": [round(min(spans[name]) - step[bare], 3), round(max(spans[name]) - step[bare], 3)],
                "runs": len(spans[name]),
            }
            for name, bare in ORCHESTRATION.items()
            if name in step and bare in step
        },
    }


def machine(threads: int) -> str:
    return f"{threads} of {os.cpu_count()} cores, {platform.processor() or platform.machine()}"


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        name, model, precision, steps, threads = sys.argv[2:]
        run_child(name, model, precision, int(steps), int(threads))
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="such as gpt/bf16")
    parser.add_argument("--names", default="", help="such as ours,plain")
    parser.add_argument("--cpu-time", action="store_true", help="of a machine that others use: CPU seconds count")
    parser.add_argument("--orchestration", action="store_true")
    parser.add_argument("--limit-s", type=float, default=7200.0, help="no run begins later than this")
    options = parser.parse_args()
    options.ends_at = time.monotonic() + options.limit_s
    sys.path.insert(0, str(Path(__file__).parent))
    from loader import publish

    make_environment()
    publish(*(("orchestration", orchestration(options)) if options.orchestration else ("training", speed(options))))


if __name__ == "__main__":
    main()
