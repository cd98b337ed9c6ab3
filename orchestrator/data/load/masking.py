"""Masked language modelling on the fly (Devlin et al. 2018, 3.1): other positions each epoch. Pure.

Of a sample's ordinary tokens 15 % are to be predicted; of these 80 % become the mask token, 10 % a random ordinary
token, 10 % stay. What is masked is a function of (seed, epoch, sample id): the same at any world size.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from orchestrator.data.load.keyed import derive, keys, uniform

Ids = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
IGNORED = -100
"""The label of a position that is not predicted; what losses leave out by default."""


@dataclass(frozen=True)
class Masking:
    """How samples are masked."""

    mask_id: int
    special_V: Flags
    """By token id: never masked, never put in place of another."""
    seed: int
    continues_word_V: Flags | None = None
    """By token id: goes on a word that began before. Given, words are masked whole."""
    share: float = 0.15
    ordinary: Ids = field(init=False, repr=False)
    """The ids that may stand in for another."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "ordinary", np.flatnonzero(~self.special_V))

    def mask(self, ids_BT: Ids, sample_ids: Ids, *, epochs: Ids | int) -> tuple[Ids, Ids]:
        """Inputs and labels [B, T]; `sample_ids` [B] and `epochs` [B], or one for all, say what is drawn.

        Each sample has round(share x its ordinary tokens) labels, at least 1 if it has an ordinary token. With whole
        words it may have fewer: a word that would be too much is passed over, and the next that fits is taken.
        """
        candidates_BT = ~self.special_V[ids_BT]
        row_keys = keys(derive(self.seed, "masking"), sample_ids) ^ keys(derive(self.seed, "epoch"), epochs)
        wanted_B = np.maximum(1, np.rint(candidates_BT.sum(axis=1) * self.share)).astype(np.int64)
        chosen_BT = self._choose(ids_BT, candidates_BT, uniform(row_keys, ids_BT.shape[1]), wanted_B)
        labels_BT = np.where(chosen_BT, ids_BT, IGNORED)
        kind_BT = uniform(row_keys ^ np.uint64(1), ids_BT.shape[1])
        which_BT = (uniform(row_keys ^ np.uint64(2), ids_BT.shape[1]) * len(self.ordinary)).astype(np.int64)
        inputs_BT = np.where(chosen_BT & (kind_BT < 0.8), self.mask_id, ids_BT)
        random_BT = chosen_BT & (kind_BT >= 0.8) & (kind_BT < 0.9)
        inputs_BT[random_BT] = self.ordinary[which_BT[random_BT]]
        return inputs_BT, labels_BT

    def _choose(self, ids_BT: Ids, candidates_BT: Flags, draws_BT: npt.NDArray[np.float64], wanted_B: Ids) -> Flags:
        """Words in the order of their draws, while they fit; without `continues_word_V` each token is a word."""
        begins_BT = np.ones(ids_BT.shape, dtype=bool)
        if self.continues_word_V is not None:
            begins_BT[:, 1:] = ~(self.continues_word_V[ids_BT[:, 1:]] & candidates_BT[:, :-1])
            begins_BT |= ~candidates_BT
        word_BT = begins_BT.cumsum(axis=1) - 1
        rows = np.arange(len(ids_BT))[:, None]
        size_BW = np.zeros(ids_BT.shape, dtype=np.int64)
        np.add.at(size_BW, (rows, word_BT), candidates_BT)
        order_BW = np.where(size_BW > 0, draws_BT, 2.0).argsort(axis=1)
        sizes_BW = np.take_along_axis(size_BW, order_BW, axis=1)
        taken_BW = np.zeros(ids_BT.shape, dtype=bool)
        left_B = np.minimum(wanted_B, candidates_BT.sum(axis=1))
        for w in range(ids_BT.shape[1]):
            if not left_B.any():
                break
            fits_B = (sizes_BW[:, w] > 0) & (sizes_BW[:, w] <= left_B)
            taken_BW[rows[:, 0], order_BW[:, w]] = fits_B
            left_B = left_B - sizes_BW[:, w] * fits_B
        chosen: Flags = np.take_along_axis(taken_BW, word_BT, axis=1) & candidates_BT
        return chosen
