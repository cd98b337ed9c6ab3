"""Copies of a rank's state in host memory, made beside the training: what is written to disk, while steps go on.

The buffers are used again by the next copy: to fill fresh pages takes five times as long as the copy itself.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from orchestrator.train.engine.pieces import Piece, RankState


class HostCopies:
    """Room for one copy."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}
        self._ready: torch.cuda.Event | None = None

    def begin(self) -> None:
        """In the training's thread: what it has asked of a GPU so far belongs to the state that is copied."""
        if torch.cuda.is_available():
            self._ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._ready.record()

    @torch.no_grad()
    def copy(self, state: RankState) -> RankState:
        """In any thread: the same state in buffers of this object, which the next call overwrites."""
        self._held = {name: self._held[name] for name in state.pieces if name in self._held}
        if self._ready is None:
            return self._copied(state)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_event(self._ready)
        with torch.cuda.stream(stream):
            copied = self._copied(state)
        stream.synchronize()
        return copied

    def _copied(self, state: RankState) -> RankState:
        pieces = {name: Piece(piece.start, self._to_host(name, piece.values_N)) for name, piece in state.pieces.items()}
        return replace(state, pieces=pieces)

    def _to_host(self, name: str, values_N: Tensor) -> Tensor:
        held = self._held.get(name)
        if held is None or held.shape != values_N.shape or held.dtype != values_N.dtype:
            held = torch.empty(values_N.shape, dtype=values_N.dtype, pin_memory=values_N.is_cuda)
            self._held[name] = held
        return held.copy_(values_N.detach(), non_blocking=True)
