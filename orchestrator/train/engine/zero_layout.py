"""Where DeepSpeed's ZeRO keeps what a rank updates, as a `Layout` (Rajbhandari et al. 2020 for what the stages cut up).

Its own files are pickles that fit one number of ranks, so they are not used. Knows its optimizers by their fields, and
imports nothing of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from orchestrator.train.engine.state import Layout, Span

_SCALER = "scaler."
_SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""Of dynamic loss scaling."""


def layout_of(zero: Any, model: nn.Module, *, stage: int) -> Layout:
    """The layout of the optimizer that `deepspeed.initialize` made; of stage 0 it is torch's own."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if stage == 0:
        return _Whole(zero, named)
    return _Partitions(zero, named) if stage < 3 else _Shards(zero, named)


def scaler_numbers(zero: Any) -> dict[str, float]:
    """What dynamic loss scaling goes on from; nothing in fp32 and bf16."""
    scaler = getattr(zero, "loss_scaler", None)
    return {_SCALER + name: float(getattr(scaler, name)) for name in _SCALER_FIELDS if hasattr(scaler, name)}


def set_scaler(zero: Any, numbers: Mapping[str, float]) -> None:
    """The inverse of `scaler_numbers`."""
    scaler = getattr(zero, "loss_scaler", None)
    for name in _SCALER_FIELDS:
        if _SCALER + name in numbers and hasattr(scaler, name):
            kind = float if name == "cur_scale" else int
            setattr(scaler, name, kind(numbers[_SCALER + name]))


class _Whole:
    """Stage 0: every rank has everything."""

    def __init__(self, optimizer: torch.optim.Optimizer, named: list[tuple[str, nn.Parameter]]) -> None:
        self.optimizer = optimizer
        self._named = named

    def spans(self) -> Iterator[Span]:
        for name, parameter in self._named:
            yield Span(name, 0, parameter.numel(), parameter, 0)

    def show(self) -> None:
        """The model computes with these."""


class _Partitions:
    """Stages 1 and 2: each group of parameters lies end to end, and every rank has an equal part of that."""

    def __init__(self, zero: Any, named: list[tuple[str, nn.Parameter]]) -> None:
        self.optimizer = zero.optimizer
        self._zero, self._named = zero, named

    def spans(self) -> Iterator[Span]:
        for name, parameter in self._named:
            mapping: Any = getattr(parameter, "_hp_mapping", None)
            if mapping is None:  # all of it is another rank's
                continue
            here, whole = mapping.hp_fragment_address, mapping.lp_fragment_address
            flat_N = self._zero.single_partition_of_fp32_groups[mapping.param_group_index]
            yield Span(name, whole.start, whole.start + whole.numel, flat_N, here.start)

    def show(self) -> None:
        self._zero.update_lp_params()


class _Shards:
    """Stage 3: every rank has an equal part of each parameter; the last parts end in padding."""

    def __init__(self, zero: Any, named: list[tuple[str, nn.Parameter]]) -> None:
        self.optimizer = zero.optimizer
        self._zero, self._named = zero, named

    def spans(self) -> Iterator[Span]:
        zero = self._zero
        for name, parameter in self._named:
            cut: Any = parameter
            group, at, size = zero.grad_position[zero.get_param_id(parameter)]
            start = min(dist.get_rank() * size, cut.ds_numel)
            end = min(start + size, cut.ds_numel)
            yield Span(name, start, end, zero.fp32_partitioned_groups_flat[group], int(at))

    def show(self) -> None:
        zero = self._zero
        flats = (zero.fp32_partitioned_groups_flat, zero.fp16_partitioned_groups_flat, zero.fp16_partitioned_groups)
        for flat_N, low_N, parts in zip(*flats, strict=True):
            low_N.data.copy_(flat_N.data)
            for part, values in zip(parts, zero.unflatten(low_N, parts), strict=True):
                part.data = values.data
        if small := zero.persistent_parameters:  # which every rank holds whole
            small[0].partition(small)
            small[0].all_gather(small)
