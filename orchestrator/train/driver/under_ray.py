"""A worker group under Ray Train. The one home of ray.train."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

from orchestrator.attempts import Attempt
from orchestrator.cluster import template
from orchestrator.cluster.interface import meet_in_cluster
from orchestrator.cluster.standby import environment_of_this_process
from orchestrator.job_train import Workers
from orchestrator.plan import Plan
from orchestrator.train.driver.room import note_place, scratch_of
from orchestrator.train.driver.standby import note_environment, worker_imports
from orchestrator.train.driver.waiting import Room
from orchestrator.train.signals import listen

_NODE_LABEL = "ray.io/node-id"
_CONTROLLER_IMPORTS = f"ray.train.v2._internal.execution.controller,{__name__}"


def run_group(plan: Plan, attempt: Attempt, *, workers: Workers, room: Room) -> None:
    """Start the workers of an attempt in the room that was found, and return when they have ended.

    Raises:
        Exception: of Ray Train's, whatever has ended the group; `failures.classify` tells them apart.
    """
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    scratch = scratch_of(attempt.run)
    shutil.rmtree(scratch, ignore_errors=True)  # Ray Train would go on from what a killed driver has left
    imports = worker_imports(plan, workers)
    name, avoid = f"{attempt.run.name}-{attempt.number}", room.avoid
    trainer = _Trainer(
        _worker_main,
        train_loop_config={"run": str(attempt.run), "attempt": attempt.number, "launched_at": time.time()},
        torch_config=_Listening(backend="cpu:gloo,cuda:nccl" if workers.gpus else "gloo", run=str(attempt.run)),
        scaling_config=ScalingConfig(
            num_workers=plan.workers,
            use_gpu=workers.gpus > 0,
            resources_per_worker={"CPU": workers.cpus, **({"GPU": workers.gpus} if workers.gpus else {})},
            label_selector={_NODE_LABEL: f"!in({','.join(avoid)})"} if avoid else None,  # type: ignore[call-arg]
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(scratch),
            worker_runtime_env=template.environment(imports, template=imports),
            # What follows a failure is decided by us, and each new worker group is an attempt of its own.
            failure_config=FailureConfig(
                max_failures=0,
                max_preemption_failures=0,  # type: ignore[call-arg]  # Ray's stubs are of its first trainer
                controller_failure_limit=0,
            ),
        ),
    )
    trainer.grows = not room.own
    trainer.environment = template.environment(_CONTROLLER_IMPORTS, template=imports)
    try:
        trainer.fit()
    finally:
        _give_back(name)
        shutil.rmtree(scratch, ignore_errors=True)


class _Trainer(TorchTrainer):  # its methods of Ray Train's second version, which Ray's stubs do not know
    """Ray Train's trainer without the processes that it starts for what is not used here: each costs a start a second.

    What is left out: an actor that deals out Ray Data's sets; one that gives back the placement group of a controller
    that was killed (`_give_back` does); and where no machine can come, the one that asks the autoscaler for some.
    """

    grows = True
    """Whether machines can come."""
    environment: Mapping[str, Any] = {}
    """The controller's."""

    def _create_default_callbacks(self) -> list[Any]:
        needless = (DatasetsCallback, PlacementGroupCleanerCallback)
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]
        return [each for each in callbacks if not isinstance(each, needless)]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        if not self.grows:
            parts["scaling_policy"] = _Fixed(self.scaling_config)  # type: ignore[arg-type]
        given = {**self.environment["env_vars"], **get_env_vars_to_propagate()}
        here = {_NODE_LABEL: ray.get_runtime_context().get_node_id()}
        started = ray.remote(num_cpus=0, label_selector=here, runtime_env={**self.environment, "env_vars": given})
        controller: Any = started(TrainController).remote(**parts)
        ray.get(controller.run.remote())
        return ray.get(controller.get_result.remote())


class _Fixed(FixedScalingPolicy):
    """Asks for nothing beyond what there is."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Nobody is told."""

    def _maybe_send_resource_request(self) -> None:
        """Nobody is asked."""


def _give_back(name: str) -> None:
    """Remove what a controller that was killed still holds: Ray would keep it for as long as the driver lives."""
    with contextlib.suppress(Exception):  # Ray has ended, and holds nothing
        for found in ray.util.placement_group_table().values():
            if found["name"] == name and found["state"] != "REMOVED":
                ray.util.remove_placement_group(ray.util.get_placement_group(name))


class _ListeningBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    """Torch's process group; before it, in the main thread of each worker, the handler of signals."""

    def on_start(self, worker_group: Any, backend_config: _Listening) -> None:
        """In Ray's controller."""
        note_environment(Path(backend_config.run), "controller", environment_of_this_process())
        worker_group.execute(listen, signal.SIGTERM)
        worker_group.execute(meet_in_cluster)
        super().on_start(worker_group, backend_config)


@dataclass
class _Listening(TorchConfig):
    run: str = ""

    @property
    def backend_cls(self) -> type:
        return _ListeningBackend


def _worker_main(config: dict[str, Any]) -> None:
    """In the worker: its output goes to the run's folder, its errors to the driver."""
    from ray.train import get_context

    from orchestrator.train.group import TorchGroup
    from orchestrator.train.worker import run_worker

    run = Path(config["run"])
    rank = get_context().get_world_rank()
    with _output_to(run / "logs" / f"rank-{rank:05d}.log"):
        try:
            note_place(run, rank, machine=ray.get_runtime_context().get_node_id())
            if rank == 0:
                note_environment(run, "worker", environment_of_this_process())
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
