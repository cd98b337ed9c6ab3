"""Where DeepSpeed's ZeRO keeps what a rank updates, as a `Layout` (Rajbhandari et al. 2020 for what the stages cut up).

Its own files are pickles that fit one number of ranks, so they are not used. Knows its optimizers by their fields, and
imports nothing of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from orchestrator.train.engine.state import Layout, Span

_SCALER = "scaler."
_SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""Of dynamic loss scaling."""


class ZeroLayout(Layout, Protocol):
    """A layout that can show the model other weights than those that are trained."""

    def flats(self) -> Sequence[Tensor]:
        """The fp32 tensors that the spans lie in; the same ones each time."""
        ...

    def show(self, values: Sequence[Tensor] | None = None) -> None:
        """Have the model compute with these in place of `flats`; None: with `flats` as they are now. Collective."""
        ...


def layout_of(zero: Any, model: nn.Module, *, stage: int) -> ZeroLayout:
    """The layout of the optimizer that `deepspeed.initialize` made; of stage 0 it is torch's own."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if stage == 0:
        return _Whole(zero, named)
    if stage < 3:
        return _Partitions(zero, named)
    return _OnDisk(zero, named) if zero.swap_optimizer else _Shards(zero, named)


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
    """Stage 0: every rank has everything, and the model computes with the optimizer's own tensors."""

    is_passing = False

    def __init__(self, optimizer: torch.optim.Optimizer, named: list[tuple[str, nn.Parameter]]) -> None:
        self.optimizer = optimizer
        self._named = named
        self._trained = [parameter.data for _, parameter in named]

    def spans(self, *, changing: bool = False) -> Iterator[Span]:
        for name, parameter in self._named:
            yield Span(name, 0, parameter.numel(), parameter, 0)

    def flats(self) -> Sequence[Tensor]:
        return [parameter for _, parameter in self._named]

    def show(self, values: Sequence[Tensor] | None = None) -> None:
        for (_, parameter), shown in zip(self._named, values or self._trained, strict=True):
            parameter.data = shown


class _Partitions:
    """Stages 1 and 2: each group of parameters lies end to end, and every rank has an equal part of that."""

    is_passing = False

    def __init__(self, zero: Any, named: list[tuple[str, nn.Parameter]]) -> None:
        self.optimizer = zero.optimizer
        self._zero, self._named = zero, named

    def spans(self, *, changing: bool = False) -> Iterator[Span]:
        for name, parameter in self._named:
            mapping: Any = getattr(parameter, "_hp_mapping", None)
            if mapping is None:  # all of it is another rank's
                continue
            here, whole = mapping.hp_fragment_address, mapping.lp_fragment_address
            flat_N = self._zero.single_partition_of_fp32_groups[mapping.param_group_index]
            yield Span(name, whole.start, whole.start + whole.numel, flat_N, here.start)

    def flats(self) -> Sequence[Tensor]:
        flats: list[Tensor] = self._zero.single_partition_of_fp32_groups
        return flats

    def show(self, values: Sequence[Tensor] | None = None) -> None:
        trained = self.flats()
        try:
            self._zero.single_partition_of_fp32_groups = values or trained
            self._zero.update_lp_params()
        finally:
            self._zero.single_partition_of_fp32_groups = trained


class _Shards:
    """Stage 3: every rank has an equal part of each parameter; the last parts end in padding."""

    is_passing = False

    def __init__(self, zero: Any, named: list[tuple[str, nn.Parameter]]) -> None:
        self.optimizer = zero.optimizer
        self._zero, self._named = zero, named

    def spans(self, *, changing: bool = False) -> Iterator[Span]:
        zero = self._zero
        for name, parameter in self._named:
            cut: Any = parameter
            group, at, size = zero.grad_position[zero.get_param_id(parameter)]
            start = min(dist.get_rank() * size, cut.ds_numel)
            end = min(start + size, cut.ds_numel)
            yield Span(name, start, end, zero.fp32_partitioned_groups_flat[group], int(at))

    def flats(self) -> Sequence[Tensor]:
        flats: list[Tensor] = self._zero.fp32_partitioned_groups_flat
        return flats

    @torch.no_grad()
    def show(self, values: Sequence[Tensor] | None = None) -> None:
        zero, trained = self._zero, self.flats()
        zero.empty_partition_cache()  # what is gathered is of the weights before
        try:
            zero.fp32_partitioned_groups_flat = values or trained
            for group in range(len(trained)):
                with self._in_memory(group, changing=False):
                    zero._reassign_or_swap_out_partitioned_parameters(group)
        finally:
            zero.fp32_partitioned_groups_flat = trained
        if small := zero.persistent_parameters:  # which every rank holds whole
            small[0].all_gather(small)

    def _in_memory(self, group: int, *, changing: bool) -> contextlib.AbstractContextManager[None]:
        """While the numbers of a group are looked at; `changing` where they are written."""
        return contextlib.nullcontext()


class _OnDisk(_Shards):
    """Stage 3 with the optimizer's state on NVMe: a group of parameters is in memory while its spans are looked at.

    Groups that are smaller than a read of the disk stay in memory.
    """

    is_passing = True

    def spans(self, *, changing: bool = False) -> Iterator[Span]:
        groups: dict[int, list[Span]] = {}
        for (_, parameter), span in zip(self._named, super().spans(), strict=True):
            groups.setdefault(self._zero.grad_position[self._zero.get_param_id(parameter)][0], []).append(span)
        for group, spans in groups.items():
            with self._in_memory(group, changing=changing):
                yield from spans

    @contextlib.contextmanager
    def _in_memory(self, group: int, *, changing: bool) -> Iterator[None]:
        zero = self._zero
        if not zero._swappable_optimizer_subgroup(group):
            yield
            return
        zero._optimizer_states_and_gradient_swap_in(group)
        try:
            yield
        finally:
            if changing:
                zero._optimizer_states_and_gradient_swap_out(group)
            else:
                zero._release_swap_buffers(group)
