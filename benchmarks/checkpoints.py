"""C8: what a checkpoint costs the training, and when it is durable: 0.5 GB of weights and AdamW's moments, one worker.

    python benchmarks/checkpoints.py [--rounds 4] [--only ours,dcp-async]

Each kind trains the same network, in fp32 on one thread, in a process of its own. `held` is how long the training
thread could not go on: the call that saves, and waits in later steps. `excess` is what the steps from one checkpoint to
the next took beyond as many undisturbed ones: held, and what the writing beside them slowed down. Durable: all of it is
flushed to disk (and, of ours, its checksums stand in a manifest, with the weights a second time as plain safetensors).
Then a fresh network is restored, and must be the same to the bit.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from training import machine

ROOT = Path(__file__).parents[1]
SHAPE = {"vocab_size": 16384, "layers": 6, "width": 640, "heads": 10, "kv_heads": 10, "hidden": 1792, "context": 128}
ROWS, WARM_UP_STEPS, QUIET_STEPS, STEPS_BETWEEN = 4, 2, 5, 4
NAMES = ("ours", "ours-zero-2", "dcp-async", "dcp", "deepspeed")
LIMIT_S = 500


class Kind(ABC):
    """One way to train and save."""

    @abstractmethod
    def step(self, number: int) -> float:
        """Train a step; the seconds in which it waited for a checkpoint."""

    @abstractmethod
    def save(self, folder: Path) -> Callable[[], object]:
        """Begin a checkpoint; what is given back returns when it is durable."""

    @abstractmethod
    def restored(self, folder: Path) -> bool:
        """Whether a fresh network that is restored is the same to the bit, optimizer and all."""


def batch_of(number: int) -> Any:
    """[ROWS, context + 1] ids."""
    import torch

    generator = torch.Generator().manual_seed(number)
    return torch.randint(0, SHAPE["vocab_size"], (ROWS, SHAPE["context"] + 1), generator=generator)


def network(seed: int) -> Any:
    from model.config import HeadConfig, ModelConfig
    from model.families import build

    return build(ModelConfig(**SHAPE, family="llama"), HeadConfig()).initialise(seed)


class Ours(Kind):
    """Our engine, and the saver of a run."""

    def __init__(self, stage: int, folder: Path) -> None:
        from orchestrator.attempts import Attempt
        from orchestrator.checkpoint.writer import CheckpointWriter, Retention
        from orchestrator.job import JobSpec
        from orchestrator.store import write_json
        from orchestrator.train.group import join_group
        from orchestrator.train.saving.saver import Saver

        self._stage, self._group = stage, join_group()
        self._train = {
            "steps": 100,
            "batch_tokens": ROWS * SHAPE["context"],
            "precision": "fp32",
            "zero": {"stage": stage},
        }
        self._engine = self._make(0)
        run = folder / "run"
        run.mkdir()
        write_json(run / "attempt.json", {"attempt": 1})
        model = {
            "layers": SHAPE["layers"],
            "width": SHAPE["width"],
            "heads": SHAPE["heads"],
            "context": SHAPE["context"],
        }
        job = JobSpec.model_validate(
            {"name": "c8", "data": {"sources": [{"path": "none"}]}, "model": model, "train": self._train}
        )
        writer = CheckpointWriter(run, group=self._group, attempt=Attempt(run, 1), retention=Retention(1))
        self._saver = Saver(
            writer,
            engine=self._engine,
            group=self._group,
            job=job,
            description={"head": {"kind": "lm"}},
            probe={"input_ids": batch_of(0)[:2, :64].contiguous()},
            stage=stage,
        )
        self._run = run

    def _make(self, seed: int) -> Any:
        from orchestrator.job_train import Train
        from orchestrator.objectives.causal_lm import CausalLM
        from orchestrator.train.engine.make import make_engine

        train = Train.model_validate(self._train)
        return make_engine(
            network(seed), CausalLM(), train, group=self._group, stage=self._stage, micro_batch=ROWS, accumulation=1
        )

    def step(self, number: int) -> float:
        from orchestrator.objectives.causal_lm import LOSS, next_token_batch

        batch, waited_s = next_token_batch(batch_of(number).numpy()), 0.0

        def admit(stats: object) -> bool:
            nonlocal waited_s
            waited_s = self._saver.let_change()
            return True

        self._engine.step([batch], totals={LOSS: float(batch.tokens)}, learning_rate=1e-4, admit=admit)
        return waited_s

    def save(self, folder: Path) -> Callable[[], object]:
        from orchestrator.checkpoint.layout import Progress

        self._saver.save(
            Progress(step=1),
            attempt=1,
            facts={},
            before=lambda: None,
            after=lambda saved, path: self._move(path, folder),
        )
        return self._saver.finish

    @staticmethod
    def _move(path: Path, folder: Path) -> None:
        path.rename(folder)

    def restored(self, folder: Path) -> bool:
        import torch

        from orchestrator.checkpoint.layout import STATE_FOLDER

        fresh = self._make(1)
        self.step(1)
        self._engine.load(folder / STATE_FOLDER)
        fresh.load(folder / STATE_FOLDER)
        own, other = self._engine.state().pieces, fresh.state().pieces
        return own.keys() == other.keys() and all(torch.equal(own[n].values_N, other[n].values_N) for n in own)


class Plain(Kind):
    """A plain loop with torch's distributed checkpoints."""

    def __init__(self, *, is_async: bool) -> None:
        import torch
        import torch.distributed as dist

        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        self._async = is_async
        self._model, self._optimizer = self._make(0)
        self._torch = torch

    @staticmethod
    def _make(seed: int) -> tuple[Any, Any]:
        import torch

        model = network(seed)
        return model, torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step(self, number: int) -> float:
        import torch.nn.functional as F

        ids = batch_of(number)
        loss = F.cross_entropy(self._model(ids[:, :-1]).flatten(0, 1).float(), ids[:, 1:].flatten())
        loss.backward()
        self._torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return 0.0

    def _state(self, model: Any, optimizer: Any) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import get_state_dict

        weights, moments = get_state_dict(model, optimizer)
        return {"model": weights, "optimizer": moments}

    def save(self, folder: Path) -> Callable[[], object]:
        import torch.distributed.checkpoint as dcp

        state = self._state(self._model, self._optimizer)
        if self._async:
            return dcp.async_save(state, checkpoint_id=str(folder)).result  # type: ignore[union-attr]
        dcp.save(state, checkpoint_id=str(folder))
        return lambda: None

    def restored(self, folder: Path) -> bool:
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.state_dict import set_state_dict

        sides = []
        for model, optimizer in ((self._model, self._optimizer), self._make(1)):
            state = self._state(model, optimizer)
            dcp.load(state, checkpoint_id=str(folder))
            set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
            sides.append([*model.parameters(), *(s["exp_avg_sq"] for s in optimizer.state.values())])
        return all(self._torch.equal(a, b) for a, b in zip(*sides, strict=True))


class DeepSpeed(Kind):
    """DeepSpeed's own loop and save, ZeRO 2."""

    def __init__(self) -> None:
        from orchestrator.train.engine.deepspeed_engine import import_deepspeed
        from orchestrator.train.group import join_group

        join_group()
        self._deepspeed = import_deepspeed()
        self._engine = self._make(0)

    def _make(self, seed: int) -> Any:
        import torch

        model = network(seed)
        config = {
            "train_micro_batch_size_per_gpu": ROWS,
            "gradient_clipping": 1.0,
            "zero_optimization": {"stage": 2},
            "zero_allow_untested_optimizer": True,
        }
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        engine, *_ = self._deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        return engine

    def step(self, number: int) -> float:
        import torch.nn.functional as F

        ids = batch_of(number)
        loss = F.cross_entropy(self._engine(ids[:, :-1]).flatten(0, 1).float(), ids[:, 1:].flatten())
        self._engine.backward(loss)
        self._engine.step()
        return 0.0

    def save(self, folder: Path) -> Callable[[], object]:
        self._engine.save_checkpoint(str(folder))
        for path in folder.rglob("*"):  # it flushes nothing itself
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        return lambda: None

    def restored(self, folder: Path) -> bool:
        import torch

        sides = []
        for engine in (self._engine, self._make(1)):
            engine.load_checkpoint(str(folder))
            state = engine.optimizer.optimizer.state
            sides.append([*engine.module.parameters(), *(s["exp_avg_sq"] for s in state.values())])
        return all(torch.equal(a, b) for a, b in zip(*sides, strict=True))


def run_child(name: str, rounds: int, folder: Path) -> None:
    """Train, save, train on, restore."""
    import torch

    torch.set_num_threads(1)
    made: dict[str, Callable[[], Kind]] = {
        "ours": lambda: Ours(0, folder),
        "ours-zero-2": lambda: Ours(2, folder),
        "dcp-async": lambda: Plain(is_async=True),
        "dcp": lambda: Plain(is_async=False),
        "deepspeed": DeepSpeed,
    }
    kind = made[name]()
    number, quiet = 0, []
    for _ in range(WARM_UP_STEPS + QUIET_STEPS):
        began_at = time.perf_counter()
        kind.step(number := number + 1)
        quiet.append(time.perf_counter() - began_at)
    step_s = statistics.median(quiet[WARM_UP_STEPS:])
    told: dict[str, Any] = {"step_s": step_s, "held_s": [], "excess_s": [], "durable_s": []}
    for turn in range(rounds):
        target = folder / f"checkpoint-{turn}"
        began_at = time.perf_counter()
        wait = kind.save(target)
        held_s = time.perf_counter() - began_at
        held_s += sum(kind.step(number := number + 1) for _ in range(STEPS_BETWEEN))
        told["excess_s"].append(time.perf_counter() - began_at - STEPS_BETWEEN * step_s)
        told["held_s"].append(held_s)
        wait()
        if turn and (previous := folder / f"checkpoint-{turn - 1}").is_dir():
            shutil.rmtree(previous)
    began_at = time.perf_counter()
    kind.save(folder / "last")()
    told["durable_s"].append(time.perf_counter() - began_at)
    told["bytes"] = sum(p.stat().st_size for p in (folder / "last").rglob("*") if p.is_file())
    told["restored"] = kind.restored(folder / "last")
    (folder / "result.json").write_text(json.dumps(told))
    os._exit(0)


def measure(name: str, rounds: int) -> dict[str, Any] | None:
    """One process; None where it failed."""
    with tempfile.TemporaryDirectory(prefix="slipway-bench-") as folder:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        args = [sys.executable, __file__, "--child", name, str(rounds), folder]
        done = subprocess.run(args, check=False, capture_output=True, text=True, env=env, timeout=LIMIT_S)
        target = Path(folder, "result.json")
        if not target.is_file():
            sys.stderr.write(f"{name}: failed\n{done.stderr[-2000:]}\n")
            return None
        found: dict[str, Any] = json.loads(target.read_text())
    sys.stderr.write(f"{name}: {found}\n")
    return found


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """The first checkpoint fills fresh pages and is told apart."""
    held, excess = found["held_s"], found["excess_s"]
    return {
        "step_ms": round(found["step_s"] * 1e3, 1),
        "first_held_ms": round(held[0] * 1e3, 2),
        "held_ms": round(statistics.median(held[1:]) * 1e3, 2),
        "excess_ms": round(statistics.median(excess[1:]) * 1e3, 1),
        "durable_s": round(found["durable_s"][0], 2),
        "mb": round(found["bytes"] / 1e6),
        "restored_to_the_bit": found["restored"],
    }


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        run_child(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(NAMES)
    rows = {name: summary(found) for name in names if (found := measure(name, options.rounds))}
    from loader import publish

    publish("checkpoints", {"benchmark": "C8", "machine": machine(1), "rows": rows})


if __name__ == "__main__":
    main()
