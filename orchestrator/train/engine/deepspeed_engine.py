"""`TrainEngine` on DeepSpeed's ZeRO: what a worker holds is cut up over ranks. The one home of deepspeed."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.job_train import Train
from orchestrator.objectives.protocol import Batch, Objective, Tensors
from orchestrator.track import metrics
from orchestrator.train.engine.average import Average
from orchestrator.train.engine.checksum import checksum_of
from orchestrator.train.engine.devices import own_device, to_device, to_host
from orchestrator.train.engine.nvme import nvme_for
from orchestrator.train.engine.pieces import PieceReader, RankState
from orchestrator.train.engine.protocol import Admit, Evaluated, Learner, StepStats
from orchestrator.train.engine.settings import deepspeed_config
from orchestrator.train.engine.state import (
    AVERAGE,
    buffers_of,
    kept_buffers,
    pieces_of,
    set_buffers,
    take_up,
    whole_model,
)
from orchestrator.train.engine.statistics import Statistics, catching, norm_of_all, share_of
from orchestrator.train.engine.twin import Twin
from orchestrator.train.engine.zero_gate import Gate
from orchestrator.train.engine.zero_layout import layout_of, scaler_numbers, set_scaler
from orchestrator.train.group import TorchGroup
from orchestrator.train.optimizers import module_optimizer
from orchestrator.train.ranks import Stopwatch
from orchestrator.train.weights.lora import merged_weights


class DeepSpeedEngine:
    """`TrainEngine` on DeepSpeed's ZeRO stages 0 to 3.

    Where `train.ema` is set, `step` trains the weights, and everything else works with their moving average.

    Args:
        model: with its initial weights, the same on every rank.
        stage: of ZeRO, decided by the plan.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        train: Train,
        *,
        group: TorchGroup,
        stage: int,
        micro_batch: int,
        accumulation: int,
    ) -> None:
        deepspeed = import_deepspeed()
        self._held = contextlib.ExitStack()
        self._held.enter_context(nvme_for(train, rank=group.rank))
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
        self._group, self._stage = group, stage
        self._device = own_device()
        self._stopwatch = Stopwatch(self._device)
        # What is not trained comes back rounded, or not at all where it is cut up: it is given back as it came.
        frozen = [(name, p) for name, p in model.named_parameters() if not p.requires_grad]
        self._frozen = {name: p.detach().cpu().clone() for name, p in frozen} if group.rank == 0 else {}
        self._model = model.to(self._device)
        self._shapes = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
        learner = Learner(self._model, objective)
        if train.compile:
            learner.compile()
        self._engine, *_ = deepspeed.initialize(
            model=learner,
            optimizer=module_optimizer(self._model, train.optimizer),
            config=deepspeed_config(
                train,
                stage=stage,
                micro_batch=micro_batch,
                accumulation=accumulation,
                on_gpu=self._device.type == "cuda",
            ),
        )
        # Stage 0 keeps fp32 weights and computes under autocast: DeepSpeed's own bf16 optimizer without ZeRO drifts
        # from the other stages (gradient norm 4 % off at step 2 of the quickstart, where they agree to 0.1 %).
        self._autocast = train.precision == "bf16" and stage == 0
        self._layout = layout_of(self._engine.optimizer, self._model, stage=stage)
        self._average = Average(self._layout, decay=train.ema) if train.ema else None
        self._statistics = Statistics()
        self._gate = Gate(self._engine.optimizer, stage=stage)
        self._buffers = [buffer for _, buffer in kept_buffers(self._model)]
        self._twin: Twin | None = None
        if stage < 3 and not (train.ema or self._buffers or train.compile):
            self._twin = Twin(self._model, objective, device=self._device, context=self._precision)

    def step(
        self,
        batches: Sequence[Batch],
        *,
        totals: Mapping[str, float],
        learning_rate: float,
        admit: Admit | None = None,
    ) -> StepStats:
        """See `TrainEngine`. With fp16, DeepSpeed itself leaves out the update of a gradient that overflows."""
        self._show_average(False)
        self._engine.train()
        for parameters in self._engine.optimizer.param_groups:
            parameters["lr"] = learning_rate
        measure = self._statistics.due()
        several = len(batches) * self._group.num_ranks > 1
        before = [buffer.clone() for buffer in self._buffers] if admit is not None else []
        own: float | None = None
        sums: list[Tensor] = []
        told: list[StepStats] = []

        def ask(norm: float) -> bool:
            values = torch.stack(sums).sum(0).tolist()  # waits for the device
            told.append(StepStats(dict(zip(losses, values, strict=True)), norm, self._stopwatch.take()))
            return admit is None or admit(told[0])

        self._gate.begin(ask)
        for number, batch in enumerate(batches):
            with self._stopwatch.running():  # not backward, which holds exchanges: stage 3 has them here too
                losses, _ = self._forward(batch.tensors)
            loss = torch.stack([losses[part] / totals[part] for part in losses]).sum()
            sums.append(torch.stack([value.detach() for value in losses.values()]))
            found = self._backward(loss, measure=measure and several and number == 0)
            own = own if found is None else found
            if self._stage == 0 and number == len(batches) - 1:  # reduced by now; without ZeRO no norm is kept
                grads = [p.grad for p in self._model.parameters() if p.grad is not None]
                self._gate.admits(float(torch.nn.utils.get_total_norm(grads)))
            self._engine.step()
        if not self._gate.admits(math.inf):  # asked by now, but where DeepSpeed has found an overflow before
            for buffer, value in zip(self._buffers, before, strict=True):
                buffer.copy_(value)
            return told[0]
        if self._average is not None and self._gate.updated:
            self._average.update()
        return self._measured(told[0], own, batches[0], totals) if measure else told[0]

    def checksum(self) -> int | None:
        """See `TrainEngine`: up to stage 2 the weights that the model computes with, which each update gathers anew.

        At stage 3 there are none: what a rank does not own is gathered for each use.
        """
        return checksum_of(self._model.parameters()) if self._stage < 3 else None

    def evaluate(self, batch: Batch, *, outputs: bool) -> Evaluated:
        """See `TrainEngine`."""
        self._to_evaluation()
        with torch.no_grad():
            losses, found = self._forward(batch.tensors, outputs=outputs)
        return Evaluated({part: float(value) for part, value in losses.items()}, to_host(found))

    def outputs(self, tensors: Tensors) -> Tensors:
        """See `TrainEngine`."""
        self._to_evaluation()
        with torch.no_grad():
            _, found = self._forward(tensors, losses=False, outputs=True)
        return to_host(found)

    def beside(self) -> Callable[[Tensors], Tensors] | None:
        """See `TrainEngine`."""
        return self._twin.outputs if self._twin is not None else None

    def state(self) -> RankState | None:
        """See `TrainEngine`."""
        if self._stage == 0:
            if self._group.rank:  # all ranks hold the same
                return None
            self._show_average(False)  # without ZeRO the model's weights are those that are trained
        pieces, numbers = pieces_of(self._layout)
        if self._average is not None:
            pieces |= self._average.pieces()
        if self._group.rank == 0:
            pieces |= buffers_of(self._model)
        numbers |= scaler_numbers(self._engine.optimizer) | self._statistics.numbers()
        return RankState(self._group.rank, self._group.num_ranks if self._stage else 1, pieces, numbers)

    def whole(self, reader: PieceReader) -> dict[str, Tensor]:
        """See `TrainEngine`."""
        kind = {} if self._average is None else {"kind": AVERAGE}
        return merged_weights(self._model, whole_model(self._model, self._shapes, reader, **kind) | self._frozen)

    def load(self, folder: Path) -> None:
        """See `TrainEngine`."""
        self._show_average(False)
        with PieceReader(folder) as reader:
            take_up(self._layout, reader, {name: shape.numel() for name, shape in self._shapes.items()})
            set_buffers(self._model, reader)
            set_scaler(self._engine.optimizer, reader.numbers)
            self._statistics.take_up(reader.numbers)
            if self._average is not None:
                self._average.take_up(reader)

    def _backward(self, loss: Tensor, *, measure: bool) -> float | None:
        """One backward pass; where it is to be measured, the norm of this rank's own gradient of it."""
        scale = self._group.num_ranks  # DeepSpeed averages over ranks as if all had equal shares: this makes it a sum
        trained = [p for p in self._model.parameters() if p.requires_grad]
        with catching(trained if measure else ()) as norms:
            self._engine.backward(loss * scale, scale_wrt_gas=False)
        if not measure:
            return None
        return float(norm_of_all(norms)) / (scale * float(getattr(self._engine.optimizer, "loss_scale", 1.0)))

    def _measured(self, stats: StepStats, own: float | None, batch: Batch, totals: Mapping[str, float]) -> StepStats:
        """With the statistics of a step that is measured, of which `batch` is the first. Collective."""
        share, add_up = share_of(batch, totals), self._group.sum
        extra = self._statistics.of_step(own=own, share=share, whole=stats.grad_norm, add_up=add_up)
        if not self._layout.is_passing:  # to read a disk for it would cost more than it tells
            mine = float(norm_of_all([span.of(span.flat_N) for span in self._layout.spans()])) ** 2
            (whole,) = self._group.sum(mine) if self._stage else (mine,)
            extra = {metrics.WEIGHT_NORM: math.sqrt(whole), **extra}
        return replace(stats, extra=extra)

    def _to_evaluation(self) -> None:
        self._engine.eval()
        self._show_average(True)

    def _show_average(self, wanted: bool) -> None:
        if self._average is not None:
            self._average.show(wanted)

    def _forward(self, tensors: Tensors, *, losses: bool = True, outputs: bool = False) -> tuple[Tensors, Tensors]:
        with self._precision():
            found: tuple[Tensors, Tensors] = self._engine(
                to_device(tensors, self._device), losses=losses, outputs=outputs
            )
        return found

    def _precision(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast)


def import_deepspeed() -> Any:
    """DeepSpeed, imported quietly and without its shared-memory op.

    That op serves inference only, yet `init_distributed` compiles it at first use: 50 s, and a start that hangs for
    ever where such a build was killed once. Training goes through gloo or NCCL, so it is switched off.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
