"""`TrainEngine` in plain torch: every rank holds the whole model, gradients are summed (ZeRO stage 0).

All weights lie in one flat vector in fp32, sorted by how they are updated, and the model's parameters are views of it
(in bf16, of a rounded copy). So an update is a few calls of a fused optimizer, and a reduction is one collective:
DeepSpeed's hooks for each parameter cost small models more than their arithmetic.

N numbers in all weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from orchestrator.job_train import Train
from orchestrator.objectives.protocol import Batch, Objective, Tensors
from orchestrator.track import metrics
from orchestrator.train.engine.checksum import checksum_of
from orchestrator.train.engine.devices import own_device, to_device, to_host
from orchestrator.train.engine.flat import FlatWeights, norm_of
from orchestrator.train.engine.pieces import Piece, PieceReader, RankState
from orchestrator.train.engine.protocol import Admit, Evaluated, Learner, StepStats
from orchestrator.train.engine.state import (
    AVERAGE,
    Layout,
    Span,
    buffers_of,
    kept_buffers,
    pieces_of,
    set_buffers,
    take_up,
    whole_model,
)
from orchestrator.train.engine.statistics import Statistics, share_of
from orchestrator.train.engine.twin import Twin
from orchestrator.train.group import TorchGroup
from orchestrator.train.optimizers import flat_optimizer
from orchestrator.train.ranks import Stopwatch
from orchestrator.train.weights.lora import merged_weights


class TorchEngine:
    """`TrainEngine` without sharding.

    Where `train.ema` is set, `step` trains the weights, and everything else works with their moving average.
    A `step` that runs out of memory leaves weights and optimizer as they were: the same step may be tried again in
    smaller micro-batches.

    Args:
        model: with its initial weights, the same on every rank; its trained parameters are taken over.

    Raises:
        ValueError: nothing of the model is trained, or the optimizer does not fit the model.
    """

    def __init__(self, model: nn.Module, objective: Objective, train: Train, *, group: TorchGroup) -> None:
        self._group, self._train = group, train
        self._device = own_device()
        low = train.precision == "bf16"
        # What is not trained is rounded for the model, and given back by `weights` as it came.
        self._frozen = {name: p.detach() for name, p in model.named_parameters() if low and not p.requires_grad}
        self._flat = FlatWeights(model, device=self._device, low_precision=low)
        self._model = model.to(self._device, torch.bfloat16 if low else torch.float32)
        self._learner: Any = Learner(self._model, objective)
        if train.compile:
            self._learner.compile()
        # The gradient that the optimizer sees: in fp32, and apart from the model's where this is bf16.
        self._sum_N = torch.zeros_like(self._flat.master_N) if low else self._flat.grads_N
        self._optimizer = flat_optimizer(self._flat, self._sum_N, train.optimizer)
        self._average_N = self._flat.master_N.clone() if train.ema else None
        self._statistics = Statistics()
        self._stopwatch = Stopwatch(self._device)
        self._buffers = [buffer for _, buffer in kept_buffers(self._model)]
        self._half_updated = False
        self._twin: Twin | None = None
        if not (train.ema or self._buffers or train.compile):
            self._twin = Twin(self._model, objective, device=self._device, context=contextlib.nullcontext)

    def step(
        self,
        batches: Sequence[Batch],
        *,
        totals: Mapping[str, float],
        learning_rate: float,
        admit: Admit | None = None,
    ) -> StepStats:
        """See `TrainEngine`."""
        self._refuse_half_updated()
        self._to_training()
        measure = self._statistics.due()
        before = [buffer.clone() for buffer in self._buffers] if admit is not None else []
        first = None
        sums: list[Tensor] = []
        with self._stopwatch.running():
            for number, batch in enumerate(batches):
                losses = self._add_gradient(batch, totals, is_first=number == 0)
                sums.append(torch.stack([value.detach() for value in losses.values()]))
                if measure and number == 0 and len(batches) * self._group.num_ranks > 1:
                    first = norm_of(self._sum_N)
        if self._group.num_ranks > 1:
            dist.all_reduce(self._sum_N)
        norm = norm_of(self._sum_N)
        norms = torch.stack([norm] if first is None else [norm, first])
        values = torch.cat([torch.stack(sums).sum(0), norms]).tolist()  # waits for the device, once a step
        grad_norm, *measured = values[len(losses) :]
        stats = StepStats(dict(zip(losses, values, strict=False)), grad_norm, self._stopwatch.take())
        if admit is not None and not admit(stats):
            for buffer, value in zip(self._buffers, before, strict=True):
                buffer.copy_(value)
            return stats
        if self._train.gradient_clip:
            self._sum_N.mul_((self._train.gradient_clip / (norm + 1e-6)).clamp(max=1.0))
        self._update(learning_rate)
        return replace(stats, extra=self._measured(measured, grad_norm, batches[0], totals)) if measure else stats

    def checksum(self) -> int | None:
        """See `TrainEngine`: what is trained in fp32, the rest as the model computes with it."""
        return checksum_of([self._flat.master_N, *(p for p in self._model.parameters() if not p.requires_grad)])

    def evaluate(self, batch: Batch, *, outputs: bool) -> Evaluated:
        """See `TrainEngine`."""
        self._to_evaluation()
        with torch.no_grad():
            losses, found = self._learner(to_device(batch.tensors, self._device), outputs=outputs)
        values = torch.stack(list(losses.values())).tolist()
        return Evaluated(dict(zip(losses, values, strict=True)), to_host(found))

    def outputs(self, tensors: Tensors) -> Tensors:
        """See `TrainEngine`."""
        self._to_evaluation()
        with torch.no_grad():
            _, found = self._learner(to_device(tensors, self._device), losses=False, outputs=True)
        return to_host(found)

    def beside(self) -> Callable[[Tensors], Tensors] | None:
        """See `TrainEngine`."""
        return self._twin.outputs if self._twin is not None else None

    def state(self) -> RankState | None:
        """See `TrainEngine`. All ranks hold the same: it is rank 0's."""
        self._refuse_half_updated()
        if self._group.rank:
            return None
        pieces, numbers = pieces_of(self._layout)
        if self._average_N is not None:
            for slot, values in zip(self._flat.slots, self._flat.views(self._average_N), strict=True):
                pieces[f"{AVERAGE}/{slot.name}"] = Piece(0, values.view(-1))
        return RankState(0, 1, pieces | buffers_of(self._model), numbers | self._statistics.numbers())

    def whole(self, reader: PieceReader) -> dict[str, Tensor]:
        """See `TrainEngine`. Buffers that a model does not keep in its own state are left out."""
        shapes = {slot.name: slot.shape for slot in self._flat.slots}
        kind = {} if self._average_N is None else {"kind": AVERAGE}
        trained = whole_model(self._model, shapes, reader, **kind)
        fixed = {name: p for name, p in self._model.named_parameters() if name not in trained} | self._frozen
        return merged_weights(self._model, trained | {name: _host_copy(value) for name, value in fixed.items()})

    def load(self, folder: Path) -> None:
        """See `TrainEngine`."""
        with PieceReader(folder) as reader:
            take_up(self._layout, reader, {slot.name: slot.numbers for slot in self._flat.slots})
            set_buffers(self._model, reader)
            if self._average_N is not None:
                for slot, values in zip(self._flat.slots, self._flat.views(self._average_N), strict=True):
                    values.view(-1).copy_(reader.read(f"{AVERAGE}/{slot.name}", 0, slot.numbers))
            self._statistics.take_up(reader.numbers)
        self._half_updated = False

    @property
    def _layout(self) -> Layout:
        return _FlatLayout(self._optimizer, self._flat, show=self._show)

    def _show(self) -> None:
        self._to_training()
        self._flat.show(self._flat.master_N, changed=True)

    def _add_gradient(self, batch: Batch, totals: Mapping[str, float], *, is_first: bool) -> Tensors:
        """One forward and backward pass; the losses by part."""
        grads_N = self._flat.grads_N
        apart = grads_N is not self._sum_N
        if is_first or apart:
            grads_N.zero_()
        losses: Tensors
        losses, _ = self._learner(to_device(batch.tensors, self._device))
        torch.stack([losses[part] / totals[part] for part in losses]).sum().backward()  # type: ignore[no-untyped-call]
        if apart:
            self._sum_N.copy_(grads_N) if is_first else self._sum_N.add_(grads_N)
        return losses

    def _update(self, learning_rate: float) -> None:
        for parameters in self._optimizer.param_groups:
            parameters["lr"] = learning_rate
        self._half_updated = True
        self._optimizer.step()
        self._flat.show(self._flat.master_N, changed=True)
        if self._average_N is not None:
            self._average_N.lerp_(self._flat.master_N, 1.0 - float(self._train.ema or 0.0))
        self._half_updated = False

    def _refuse_half_updated(self) -> None:
        """Muon needs memory to update, and an interrupt may come at any time."""
        if self._half_updated:
            raise RuntimeError("the update before was cut off halfway: the weights are lost; go on from a checkpoint")

    def _measured(
        self, first: Sequence[float], grad_norm: float, batch: Batch, totals: Mapping[str, float]
    ) -> dict[str, float]:
        """Metrics of a step that is measured. Collective where it has several micro-batches, `batch` first."""
        own = first[0] if first else None
        share, add_up = share_of(batch, totals), self._group.sum
        extra = self._statistics.of_step(own=own, share=share, whole=grad_norm, add_up=add_up)
        return {metrics.WEIGHT_NORM: float(norm_of(self._flat.master_N)), **extra}

    def _to_training(self) -> None:
        if not self._learner.training:
            self._learner.train()
            self._flat.show(self._flat.master_N)

    def _to_evaluation(self) -> None:
        """The averaged weights where there are any, and rank 0's buffers: each rank has made its own in training."""
        if self._learner.training:
            self._learner.eval()
            if self._average_N is not None:
                self._flat.show(self._average_N)
            if self._group.num_ranks > 1:
                for buffer in self._model.buffers():
                    dist.broadcast(buffer, src=0)


class _FlatLayout:
    """All weights, as the optimizer has them: a kind is one tensor to it, or each matrix is."""

    is_passing = False

    def __init__(self, optimizer: torch.optim.Optimizer, flat: FlatWeights, *, show: Callable[[], None]) -> None:
        self.optimizer, self._flat = optimizer, flat
        self.show = show

    def spans(self, *, changing: bool = False) -> Iterator[Span]:
        leaves = [leaf for group in self.optimizer.param_groups for leaf in group["params"]]
        starts = sorted((leaf.storage_offset(), number) for number, leaf in enumerate(leaves))
        for slot in self._flat.slots:
            first, number = max(start for start in starts if start[0] <= slot.start)
            yield Span(slot.name, 0, slot.numbers, leaves[number], slot.start - first)


def _host_copy(tensor: Tensor) -> Tensor:
    """A copy of its own on the CPU, in fp32 where it is no integer."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", dtype, copy=True, memory_format=torch.contiguous_format)
