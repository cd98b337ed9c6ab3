"""How Slipway trains the network of the benchmark `training`: the worker's loop, and its engine in a bare loop."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from training_case import BETAS, CLIP, RATE, Case, Result, network, samples

from orchestrator.checkpoint.layout import Progress
from orchestrator.job import WandB
from orchestrator.job_train import Optimizer, Schedule, Train
from orchestrator.objectives.causal_lm import LOSS, CausalLM
from orchestrator.objectives.masked_lm import MLM, PLACES, MaskedLM
from orchestrator.objectives.protocol import Batch
from orchestrator.track import metrics
from orchestrator.track.wandb import RunIdentity, open_tracker
from orchestrator.train.engine.torch_engine import TorchEngine
from orchestrator.train.group import TorchGroup, join_group
from orchestrator.train.loop import Batching, Hooks, Loop


class OwnFeed:
    """`Feed` of the same samples."""

    def __init__(self, case: Case) -> None:
        self._rows = samples(case)
        self._encoder = case.model == "bert"
        self.samples_per_step = case.rows
        self.bytes_read = 0

    def read(self, step: int, first: int, last: int) -> Batch:
        """As Feed."""
        start = (step - 1) * self.samples_per_step
        chosen = self._rows[start + first : start + last]
        ids_BT, targets_BT = (torch.stack(parts) for parts in zip(*chosen, strict=True))
        tensors = {"input_ids": ids_BT, "targets": targets_BT}
        if not self._encoder:
            return Batch(tensors, {LOSS: targets_BT.numel()}, ids_BT.numel())
        places_BK = (targets_BT != -100).nonzero()[:, 1].view(len(ids_BT), -1)
        tensors = {"input_ids": ids_BT, "targets": targets_BT.gather(1, places_BK), PLACES: places_BK}
        return Batch(tensors, {MLM: places_BK.numel()}, ids_BT.numel())

    def samples(self, step: int) -> Any:
        """As Feed."""
        return np.arange(step - 1, step) * self.samples_per_step + np.arange(self.samples_per_step)

    def totals(self, step: int) -> dict[str, int] | None:
        """As Feed."""
        return None

    def seen(self, step: int) -> dict[str, Any]:
        """As Feed."""
        return {}


def own_engine(case: Case, *, compiled: bool) -> tuple[TorchEngine, Train, TorchGroup]:
    """Our engine for a case."""
    train = Train(
        steps=case.steps,
        batch_tokens=case.rows * case.config.context,
        precision=case.precision,  # type: ignore[arg-type]
        compile=compiled,
        optimizer=Optimizer(learning_rate=RATE, beta1=BETAS[0], beta2=BETAS[1], weight_decay=0.0),
        schedule=Schedule(name="constant"),
        gradient_clip=CLIP,
    )
    objective = MaskedLM(next_sentence=False) if case.model == "bert" else CausalLM()
    group = join_group()
    return TorchEngine(network(case), objective, train, group=group), train, group


@dataclass
class OwnHooks(Hooks):
    """The worker's part of a step: the line on disk and in W&B."""

    result: Result
    file: Any
    tracker: Any

    def on_step(self, line: dict[str, Any]) -> None:
        """As Hooks."""
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        self.tracker.log(line)
        self.result.add(line[metrics.LOSS])

    def stop_requested(self) -> bool:
        """As Hooks."""
        return (Path(self.file.name).parent / "stop").exists()


def ours(case: Case, *, compiled: bool = False, tracked: bool = True) -> Result:
    """The worker's loop."""
    engine, train, group = own_engine(case, compiled=compiled)
    result = Result()
    tracker = open_tracker(
        WandB(mode="offline" if tracked else "disabled"),
        RunIdentity("bench", "bench", case.folder),
        config={},
        environ={},
    )
    with contextlib.closing(tracker), (case.folder / "metrics.jsonl").open("w") as file:
        hooks = OwnHooks(result, file, tracker)
        Loop(engine, group, train, Batching(case.rows, 1), OwnFeed(case), None, hooks).run(Progress())
    return result


def ours_engine(case: Case) -> Result:
    """Our engine without the loop."""
    engine, _, _ = own_engine(case, compiled=False)
    feed, result = OwnFeed(case), Result()
    batches = [feed.read(step + 1, 0, case.rows) for step in range(case.steps)]
    for batch in batches:
        (part, count) = next(iter(batch.counts.items()))
        stats = engine.step([batch], totals={part: float(count)}, learning_rate=RATE)
        result.add(stats.losses[part] / count)
    return result
