"""The moving average of the weights where ZeRO cuts them up: each rank keeps that of the numbers which it updates."""

from __future__ import annotations

import torch

from orchestrator.train.engine.pieces import Piece, PieceReader
from orchestrator.train.engine.state import AVERAGE
from orchestrator.train.engine.zero_layout import ZeroLayout


class Average:
    """Exponential moving average of a rank's fp32 weights, in tensors that are laid out as these; begins as they are.

    Args:
        decay: share of the average before that each update keeps.
    """

    def __init__(self, layout: ZeroLayout, *, decay: float) -> None:
        self._layout, self._decay = layout, decay
        self._flats = [flat.detach().clone() for flat in layout.flats()]
        self._is_shown = False

    @torch.no_grad()
    def update(self) -> None:
        """After the weights have changed."""
        for average, flat in zip(self._flats, self._layout.flats(), strict=True):
            average.lerp_(flat.detach(), 1.0 - self._decay)

    @torch.no_grad()
    def show(self, wanted: bool) -> None:
        """Let the model compute with the average, or with the weights that are trained. Collective."""
        if wanted != self._is_shown:
            self._layout.show(self._flats if wanted else None)
            self._is_shown = wanted

    def pieces(self) -> dict[str, Piece]:
        """This rank's part, by the names of parameters. The tensors are views."""
        of = self._by_flat()
        return {
            f"{AVERAGE}/{span.name}": Piece(span.start, span.of(of[id(span.flat_N)])) for span in self._layout.spans()
        }

    @torch.no_grad()
    def take_up(self, reader: PieceReader) -> None:
        """Fill this rank's part from what any number of ranks of any engine wrote.

        Raises:
            OSError: a part of it is in no file.
        """
        of = self._by_flat()
        for span in self._layout.spans():
            values_N = reader.read(f"{AVERAGE}/{span.name}", span.start, span.end)
            span.of(of[id(span.flat_N)]).copy_(values_N)

    def _by_flat(self) -> dict[int, torch.Tensor]:
        return {id(flat): average for flat, average in zip(self._layout.flats(), self._flats, strict=True)}
