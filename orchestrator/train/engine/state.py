"""What training goes on from, as pieces by the names of parameters: so a state outlives its engine and its ranks.

Each rank says which numbers of which parameter it updates, in fp32 with the optimizer's state of them, and takes up
what it has to hold from whoever had it.

N numbers of a piece, or of a flat tensor.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from orchestrator.train.engine.pieces import Piece, PieceReader, RankState

AVERAGE = "average"
_WEIGHT, _BUFFER, _OPTIMIZER = "weight", "buffer", "optimizer."
"""Pieces are named `weight/NAME`, `average/NAME`, `optimizer.KEY/NAME` and `buffer/NAME`, numbers `optimizer.KEY`."""
_NAMED = 3


@dataclass(frozen=True)
class Span:
    """Numbers [start, end) of one parameter, which this rank updates: they begin `at` in a tensor of the optimizer."""

    name: str
    start: int
    end: int
    flat_N: Tensor
    at: int

    def of(self, values_N: Tensor) -> Tensor:
        """The same part of any tensor that is laid out as the optimizer's."""
        return values_N.detach().view(-1).narrow(0, self.at, self.end - self.start)


class Layout(Protocol):
    """Where an engine keeps things."""

    optimizer: torch.optim.Optimizer
    """Torch's own, whose state is by the tensors of `spans`."""

    is_passing: bool
    """Whether a span's numbers, and the state of its tensor, are in memory only until the next one is asked for."""

    def spans(self, *, changing: bool = False) -> Iterator[Span]:
        """All that this rank updates; `changing` where the caller writes to it."""
        ...

    def show(self) -> None:
        """Have the model compute with the fp32 weights as they are now. Collective."""
        ...


def pieces_of(layout: Layout) -> tuple[dict[str, Piece], dict[str, float]]:
    """What this rank holds, and what all ranks have alike.

    The tensors are views, but for those of a layout that is passing: copy what outlives the next step.
    """
    pieces: dict[str, Piece] = {}
    numbers: dict[str, float] = {}

    def piece(span: Span, values_N: Tensor) -> Piece:
        found_N = span.of(values_N)
        return Piece(span.start, found_N.clone() if layout.is_passing else found_N)

    for span in layout.spans():
        pieces[f"{_WEIGHT}/{span.name}"] = piece(span, span.flat_N)
        for key, value in layout.optimizer.state.get(span.flat_N, {}).items():
            if isinstance(value, Tensor) and value.dim() and value.shape == span.flat_N.shape:
                pieces[f"{_OPTIMIZER}{key}/{span.name}"] = piece(span, value)
            elif value is not None:
                numbers[_OPTIMIZER + key] = float(value)
    return pieces, numbers


def weights_of(state: RankState) -> RankState:
    """What of a rank's state makes the model: its averages where it has such, and nothing of the optimizer's."""
    is_averaged = any(name.startswith(f"{AVERAGE}/") for name in state.pieces)
    besides = (_OPTIMIZER, f"{_WEIGHT}/") if is_averaged else (_OPTIMIZER,)
    pieces = {name: piece for name, piece in state.pieces.items() if not name.startswith(besides)}
    return replace(state, pieces=pieces)


def take_up(layout: Layout, reader: PieceReader, wholes: Mapping[str, int]) -> None:
    """Fill this rank's share from what any number of ranks of any engine wrote. Collective.

    Args:
        wholes: numbers in each parameter that is trained.

    Raises:
        OSError: it is the state of another model, or a part of it is in no file.
    """
    _require_same_model(reader, wholes)
    keys: dict[str, list[str]] = {name: [] for name in wholes}
    for written in reader.names:
        kind, _, name = written.partition("/")
        if kind.startswith(_OPTIMIZER) and name in keys:
            keys[name].append(kind.removeprefix(_OPTIMIZER))
    for span in layout.spans(changing=True):
        span.of(span.flat_N).copy_(reader.read(f"{_WEIGHT}/{span.name}", span.start, span.end))
        _take_up_state(layout.optimizer, span, keys[span.name], reader)
    layout.show()


def _take_up_state(optimizer: torch.optim.Optimizer, span: Span, keys: list[str], reader: PieceReader) -> None:
    state = optimizer.state[span.flat_N]
    is_fresh = not state  # DeepSpeed's optimizers make theirs in the first step
    for key in keys:
        if key not in state:
            state[key] = torch.zeros_like(span.flat_N, requires_grad=False)
        span.of(state[key]).copy_(reader.read(f"{_OPTIMIZER}{key}/{span.name}", span.start, span.end))
    for name, number in reader.numbers.items():
        key = name.removeprefix(_OPTIMIZER)
        if isinstance(state.get(key), Tensor):
            state[key].fill_(number)
        elif is_fresh and key != name:
            state[key] = torch.tensor(number, device=_counter_device(optimizer, span.flat_N))


def _counter_device(optimizer: torch.optim.Optimizer, flat_N: Tensor) -> torch.device:
    """Where torch's optimizers keep their count of steps: beside the weights only where a kernel reads it."""
    near = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
    return flat_N.device if near else torch.device("cpu")


def _require_same_model(reader: PieceReader, wholes: Mapping[str, int]) -> None:
    prefix = f"{_WEIGHT}/"
    written = {name.removeprefix(prefix): reader.size(name) for name in reader.names if name.startswith(prefix)}
    if differ := sorted(name for name in written.keys() | wholes.keys() if written.get(name) != wholes.get(name)):
        said = ", ".join(
            f"{name} has {written.get(name, 'no')} numbers there, {wholes.get(name, 'none')} here"
            for name in differ[:_NAMED]
        )
        raise OSError(errno.EINVAL, f"it does not fit this job: {said}", str(reader.folder))


def buffers_of(model: nn.Module) -> dict[str, Piece]:
    """Copies of the buffers that a model keeps, whole: a forward pass changes them."""
    return {f"{_BUFFER}/{name}": Piece(0, buffer.detach().flatten().clone()) for name, buffer in kept_buffers(model)}


def whole_model(
    model: nn.Module, shapes: Mapping[str, torch.Size], reader: PieceReader, *, kind: str = _WEIGHT
) -> dict[str, Tensor]:
    """Trained parameters and kept buffers from what all ranks wrote: on the CPU, in fp32 but for integers.

    Args:
        shapes: of the parameters that are trained, by name.
        kind: of the pieces that are taken for weights.

    Raises:
        OSError: a part of one is in no file.
    """
    whole = {name: reader.read(f"{kind}/{name}", 0, shape.numel()).view(shape) for name, shape in shapes.items()}
    for name, buffer in kept_buffers(model):
        values = reader.read(f"{_BUFFER}/{name}", 0, buffer.numel()).view(buffer.shape)
        whole[name] = values.float() if values.is_floating_point() else values
    return whole


def set_buffers(model: nn.Module, reader: PieceReader) -> None:
    """The inverse of `buffers_of`.

    Raises:
        OSError: one was not written.
    """
    for name, buffer in kept_buffers(model):
        buffer.copy_(reader.read(f"{_BUFFER}/{name}", 0, buffer.numel()).view_as(buffer))


def kept_buffers(model: nn.Module) -> list[tuple[str, Tensor]]:
    """By name, those that are a part of its own state."""
    kept = model.state_dict().keys()
    return [(name, buffer) for name, buffer in model.named_buffers() if name in kept]
