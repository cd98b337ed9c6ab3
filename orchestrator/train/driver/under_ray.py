"""A worker group under Ray Train. The one home of ray.train."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from orchestrator.attempts import Attempt
from orchestrator.job_train import Workers
from orchestrator.plan import Plan
from orchestrator.train.driver.room import note_place, scratch_of
from orchestrator.train.signals import listen

_NODE_LABEL = "ray.io/node-id"


def run_group(plan: Plan, attempt: Attempt, *, workers: Workers, avoid: Sequence[str]) -> None:
    """Start the workers of an attempt and return when they have ended; `avoid` names machines that Ray must not take.

    Raises:
        Exception: of Ray Train's, whatever has ended the group; `failures.classify` tells them apart.
    """
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    scratch = scratch_of(attempt.run)
    shutil.rmtree(scratch, ignore_errors=True)  # Ray Train would go on from what a killed driver has left
    trainer = TorchTrainer(
        _worker_main,
        train_loop_config={"run": str(attempt.run), "attempt": attempt.number, "launched_at": time.time()},
        torch_config=_Listening(backend="cpu:gloo,cuda:nccl" if workers.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=plan.workers,
            use_gpu=workers.gpus > 0,
            resources_per_worker={"CPU": workers.cpus, **({"GPU": workers.gpus} if workers.gpus else {})},
            label_selector={_NODE_LABEL: f"!in({','.join(avoid)})"} if avoid else None,  # type: ignore[call-arg]
        ),
        run_config=RunConfig(
            name="attempt",
            storage_path=str(scratch),
            # What follows a failure is decided by us, and each new worker group is an attempt of its own.
            failure_config=FailureConfig(
                max_failures=0,
                max_preemption_failures=0,  # type: ignore[call-arg]  # Ray's stubs are of its first trainer
                controller_failure_limit=0,
            ),
        ),
    )
    try:
        trainer.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class _ListeningBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    """Torch's process group; before it, in the main thread of each worker, the handler of signals."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """In Ray's controller."""
        worker_group.execute(listen, signal.SIGTERM)
        super().on_start(worker_group, backend_config)


@dataclass
class _Listening(TorchConfig):
    @property
    def backend_cls(self) -> type:
        return _ListeningBackend


def _worker_main(config: dict[str, Any]) -> None:
    """In the worker: its output goes to the run's folder, its errors to the driver."""
    import ray
    from ray.train import get_context

    from orchestrator.train.group import TorchGroup
    from orchestrator.train.worker import run_worker

    run = Path(config["run"])
    rank = get_context().get_world_rank()
    with _output_to(run / "logs" / f"rank-{rank:05d}.log"):
        try:
            note_place(run, rank, machine=ray.get_runtime_context().get_node_id())
            attempt = Attempt(run, config["attempt"])
            run_worker(run, attempt=attempt, group=TorchGroup(), launched_at=config["launched_at"])
        except Exception:  # Ray carries the error away, and leaves no traceback in the rank's own log
            traceback.print_exc()
            raise


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Send this process's stdout and stderr to a file, libraries written in C included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
        yield
