"""Pairs of answers to one prompt as tensors: the samples of `preference`.

B pairs, R = 2 B rows (chosen answers first), T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from model.loss import IGNORED_TARGET
from orchestrator.data.load.mixture import Part
from orchestrator.data.load.order import Indices
from orchestrator.objectives.announce import say_once
from orchestrator.objectives.protocol import Batch
from orchestrator.objectives.rows import RowTable, cut_rows

PAIRS = "preference"
"""The part of the loss: a target is a pair."""

_PROMPT, _ANSWERS = "prompt_ids", ("chosen_ids", "rejected_ids")
_MULTIPLE = 8
"""Rows are padded to a multiple of this: few different shapes, and matrices that hardware likes."""


class PreferenceRows:
    """`Rows` of pairs.

    An answer's inputs are its prompt and its own tokens but the last. Where they exceed the context, the prompt of both
    answers gives way at its beginning, down to one token; then an answer that is still too long loses its end.

    Args:
        parts: of a split.
        context: the most inputs of an answer.
        split: its name, to tell people of pairs that the context cuts.
    """

    part = PAIRS

    def __init__(self, parts: Sequence[Part], *, context: int, split: str) -> None:
        self.table = RowTable(parts)
        self._room = context + 1
        prompts, chosen, rejected = (self.table.lengths(name) for name in (_PROMPT, *_ANSWERS))
        tokens = prompts + np.maximum(chosen, rejected)
        inputs = np.clip(tokens - 1, 1, context)
        self.pieces = cut_rows(tokens, inputs, {}, one_target=True)
        if cut := int((tokens > self._room).sum()):
            say_once(
                f"warning: {cut:,} of {len(self.table):,} pairs in {split} are longer than the context of {context} "
                "tokens: their prompts lose their beginning; a larger model.context keeps it"
            )

    def collate(self, numbers: Indices) -> Batch:
        """As Rows; a batch that counts nothing is a pair of padding."""
        pairs = [self._rows(number) for number in numbers.tolist()]
        inputs = max((len(tokens) - 1 for pair in pairs for tokens, _ in pair), default=1)
        length = min(-(-max(1, inputs) // _MULTIPLE) * _MULTIPLE, self._room - 1)
        ids_RT = np.zeros((2 * max(1, len(pairs)), length), dtype=np.int64)
        targets_RT = np.full_like(ids_RT, IGNORED_TARGET)
        used = 0
        for number, pair in enumerate(pairs):
            for place, (tokens, prompt) in zip((number, len(pairs) + number), pair, strict=True):
                end = len(tokens) - 1
                ids_RT[place, :end] = tokens[:-1]
                first = max(0, prompt - 1)  # this input predicts the answer's first token
                targets_RT[place, first:end] = tokens[first + 1 :]
                used += end
        tensors = {"input_ids": torch.from_numpy(ids_RT), "targets": torch.from_numpy(targets_RT)}
        return Batch(tensors, {PAIRS: len(pairs)}, used)

    def _rows(self, pair: int) -> list[tuple[Indices, int]]:
        """The tokens of both answers with their prompt, each with how many of them are the prompt's."""
        prompt, *answers = (self.table.row(name, pair) for name in (_PROMPT, *_ANSWERS))
        kept = min(len(prompt), max(1, self._room - max(map(len, answers))))
        prompt = prompt[len(prompt) - kept :]
        return [(np.concatenate([prompt, answer[: self._room - kept]]), kept) for answer in answers]
