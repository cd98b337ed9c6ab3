"""C4: one worker and two, each with a thread and eight samples of its own: weak scaling of ZeRO 0 to 3, and of DDP.

    python benchmarks/scaling.py [--repeats 3] [--steps 10] [--only stage-0,ddp]

The network is the benchmark `training`'s, in bf16. Each run is a torchrun of its own; the order turns with each
repeat. Efficiency is the step of one worker by the step of two.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from training import machine
from training_case import CLIP, RATE, Case, adamw, hf_network, loader, network
from training_ours import OwnFeed

ROOT = Path(__file__).parents[1]
WARM_UP_STEPS = 3
NAMES = ("stage-0", "stage-1", "stage-2", "stage-3", "ddp")
LIMIT_S = 200


def own_step(case: Case, stage: int) -> Callable[[int], float]:
    """A step of our engine at a ZeRO stage; gives its loss."""
    from orchestrator.job_train import Optimizer, Train, Zero
    from orchestrator.objectives.causal_lm import LOSS, CausalLM
    from orchestrator.train.engine.make import make_engine
    from orchestrator.train.group import join_group

    group = join_group()
    train = Train(
        steps=case.steps,
        batch_tokens=case.rows * case.config.context * group.num_ranks,
        precision="bf16",
        optimizer=Optimizer(learning_rate=RATE, weight_decay=0.0),
        zero=Zero(stage=stage),  # type: ignore[arg-type]
    )
    engine = make_engine(
        network(case), CausalLM(), train, group=group, stage=stage, micro_batch=case.rows, accumulation=1
    )
    feed = OwnFeed(case)
    batches = [feed.read(step + 1, 0, case.rows) for step in range(case.steps)]

    def step(number: int) -> float:
        totals = {LOSS: float(batches[number].tokens * group.num_ranks)}
        return engine.step([batches[number]], totals=totals, learning_rate=RATE).losses[LOSS] / batches[number].tokens

    return step


def ddp_step(case: Case) -> Callable[[int], float]:
    """A step of torch's DistributedDataParallel over the network of transformers."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    torch.distributed.init_process_group("gloo")
    model = hf_network(case)
    optimizer, wrapped, batches = adamw(model), DistributedDataParallel(model), list(loader(case))

    def step(number: int) -> float:
        with torch.autocast("cpu", torch.bfloat16):
            loss = wrapped(**batches[number]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss)

    return step


def run_child(name: str, steps: int, target: str) -> None:
    """One worker; rank 0 writes what it found."""
    import torch

    torch.set_num_threads(1)
    case = Case("gpt", "bf16", steps, ROOT)
    step = ddp_step(case) if name == "ddp" else own_step(case, int(name[-1]))
    spans, losses = [], []
    for number in range(steps):
        start = time.perf_counter()
        losses.append(step(number))
        spans.append(time.perf_counter() - start)
    if os.environ["RANK"] == "0":
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        result = {"ms": statistics.median(spans[WARM_UP_STEPS:]) * 1e3, "losses": losses[:3], "peak_mb": peak}
        Path(target).write_text(json.dumps(result))
    torch.distributed.barrier()
    os._exit(0)


def measure(name: str, workers: int, steps: int) -> dict[str, Any] | None:
    """One torchrun; None where it failed."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "result.json")
        args = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        subprocess.run(
            [*args, __file__, "--child", name, str(steps), str(target)],
            check=False,
            capture_output=True,
            env=env,
            timeout=LIMIT_S,
        )
        if not target.is_file():
            sys.stderr.write(f"{name} with {workers}: failed\n")
            return None
        found: dict[str, Any] = json.loads(target.read_text())
    sys.stderr.write(f"{name} with {workers}: {found['ms']:.1f} ms\n")
    return found


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        name, steps, target = sys.argv[2:]
        run_child(name, int(steps), target)
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(NAMES)
    runs: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for i in range(options.repeats):
        for name in names if i % 2 == 0 else names[::-1]:
            for workers in (1, 2) if i % 2 == 0 else (2, 1):
                if found := measure(name, workers, options.steps):
                    runs.setdefault((name, workers), []).append(found)
    from loader import publish

    result = {"benchmark": "C4", "machine": machine(2), "rows": {}}
    for name in names:
        if (name, 1) in runs and (name, 2) in runs:
            result["rows"][name] = summary(runs[name, 1], runs[name, 2])
    publish("scaling", result)


def summary(one: list[dict[str, Any]], two: list[dict[str, Any]]) -> dict[str, Any]:
    single, double = (statistics.median(run["ms"] for run in found) for found in (one, two))
    return {
        "ms_1": round(single, 1),
        "ms_2": round(double, 1),
        "efficiency_percent": round(100 * single / double, 1),
        "peak_mb_1": round(max(run["peak_mb"] for run in one)),
        "peak_mb_2": round(max(run["peak_mb"] for run in two)),
        "losses": one[0]["losses"],
        "runs": len(one),
    }


if __name__ == "__main__":
    main()
