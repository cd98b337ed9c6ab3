"""The plan's peak, beside what real steps of real workers take: over shapes, stages, precisions and worlds.

What is measured is how far the resident memory of a worker rises during its steps (VmHWM after clear_refs) above what
the process held with its libraries loaded and used, before there was a model. Run as a program it is such a worker.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TOLERANCE = 0.15
STEPS = 3

SHAPES: dict[str, dict[str, Any]] = {
    "activations": {"family": "llama", "vocab_size": 4096, "layers": 6, "width": 320, "heads": 5, "context": 256},
    "weights": {"family": "llama", "vocab_size": 16384, "layers": 6, "width": 640, "heads": 10, "context": 128},
    "gpt2": {"family": "gpt2", "vocab_size": 8192, "layers": 6, "width": 512, "heads": 8, "context": 256},
}
"""By what fills the memory; 10, 40 and 24 million parameters."""

PASSES: dict[str, dict[str, int]] = {
    "activations": {"micro_batch": 8, "accumulation": 1},
    "weights": {"micro_batch": 4, "accumulation": 2},
    "gpt2": {"micro_batch": 4, "accumulation": 2},
}

GRID = [
    *[(shape, precision, 0, 1) for shape in SHAPES for precision in ("fp32", "bf16")],
    *[(shape, "bf16", stage, 2) for shape in SHAPES for stage in (0, 1, 2, 3)],
    *[("weights", "fp32", stage, 2) for stage in (1, 2, 3)],
    ("weights", "bf16", 2, 1),
]


def settings_of(shape: str, precision: str, stage: int, workers: int) -> dict[str, Any]:
    """All that a worker needs to know, as JSON."""
    return {"model": SHAPES[shape], **PASSES[shape], "precision": precision, "stage": stage, "workers": workers}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("shape", "precision", "stage", "workers"), GRID)
def test_the_peak_is_what_was_planned(shape: str, precision: str, stage: int, workers: int) -> None:
    settings = settings_of(shape, precision, stage, workers)
    planned, found = planned_peak(settings), measured_peak(settings)
    assert planned == pytest.approx(found, rel=TOLERANCE), f"{planned / found:.2f} of {found / 1e6:.0f} MB measured"


def planned_peak(settings: dict[str, Any]) -> int:
    """By formula."""
    from orchestrator.plan.memory import memory_of
    from orchestrator.plan.network import Case, Network

    network = Network(config=_config(settings), objective="causal-lm", train=_train(settings))
    names = ("workers", "stage", "micro_batch", "accumulation")
    return memory_of(Case(network=network, **{name: settings[name] for name in names})).peak


def measured_peak(settings: dict[str, Any]) -> int:
    """The highest of the workers."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, __file__, json.dumps(settings)]
    if settings["workers"] > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={settings['workers']}"]
        command[1:1] = torchrun
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return max(json.loads(line)["peak_bytes"] for line in done.stdout.splitlines() if line.startswith("{"))


def _config(settings: dict[str, Any]) -> Any:
    from model.config import ModelConfig, default_hidden

    model = settings["model"]
    hidden = default_hidden(model["width"], model["family"])
    return ModelConfig(**model, kv_heads=model["heads"], hidden=hidden)


def _train(settings: dict[str, Any]) -> Any:
    from orchestrator.job_train import Train

    stage, precision = settings["stage"], settings["precision"]
    return Train(steps=STEPS, batch_tokens=1, precision=precision, zero={"stage": stage})  # type: ignore[arg-type]


def worker(settings: dict[str, Any]) -> None:
    """Build an engine and make some steps; print what they took."""
    import torch

    from model.config import HeadConfig
    from model.families import build
    from orchestrator.objectives.causal_lm import CausalLM
    from orchestrator.train.engine.host_copies import HostCopies
    from orchestrator.train.engine.make import make_engine
    from orchestrator.train.group import join_group, leave_group

    group = join_group()
    torch.set_num_threads(1)
    _warm_up(settings)
    before = _memory("VmRSS")
    train = _train(settings)
    model = build(_config(settings), HeadConfig("lm")).initialise(0)
    engine = make_engine(
        model,
        CausalLM(),
        train,
        group=group,
        stage=settings["stage"],
        micro_batch=settings["micro_batch"],
        accumulation=settings["accumulation"],
    )
    _forget_peak()
    built = _memory("VmRSS") - before
    copies = HostCopies()
    for _ in range(STEPS):
        engine.step(_batches(settings), totals={"loss": 1.0}, learning_rate=1e-4)
        if (state := engine.state()) is not None:  # a checkpoint after each
            copies.copy(state)
    sys.stdout.write(json.dumps({"built_bytes": built, "peak_bytes": _memory("VmHWM") - before}) + "\n")
    sys.stdout.flush()
    leave_group()


def _batches(settings: dict[str, Any]) -> list[Any]:
    import numpy as np

    from orchestrator.objectives.causal_lm import next_token_batch

    model = settings["model"]
    rows = (settings["micro_batch"], model["context"] + 1)
    generator = np.random.default_rng(0)
    return [next_token_batch(generator.integers(0, model["vocab_size"], rows)) for _ in range(settings["accumulation"])]


def _warm_up(settings: dict[str, Any]) -> None:
    """Load and use what a step uses once, in small: code and thread pools are no part of the plan."""
    import torch
    import torch.distributed as dist

    from model.config import HeadConfig
    from model.families import build
    from orchestrator.objectives.causal_lm import CausalLM

    dtype = torch.float32 if settings["precision"] == "fp32" else torch.bfloat16
    if settings["stage"]:
        from orchestrator.train.engine.deepspeed_engine import import_deepspeed

        import_deepspeed()
    tiny = {**settings["model"], "layers": 1, "width": 64, "heads": 1, "vocab_size": 512}
    model = build(_config({"model": tiny}), HeadConfig("lm")).initialise(0).to(dtype)
    ids_BT = torch.zeros(2, 64, dtype=torch.int64)
    sum(CausalLM().losses(model, {"input_ids": ids_BT, "targets": ids_BT}).values()).backward()  # type: ignore[union-attr]
    torch.optim.AdamW(model.parameters(), fused=True).step()
    dist.all_reduce(torch.ones(1024))


def _memory(field: str) -> int:
    """Of this process, in bytes: VmRSS now, VmHWM the highest since the last `_forget_peak`."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"the kernel does not tell {field}")


def _forget_peak() -> None:
    """The highest resident memory begins again from now."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


if __name__ == "__main__":
    worker(json.loads(sys.argv[1]))
