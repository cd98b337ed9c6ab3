"""What the objectives of encoders share: framed and padded rows, the call of the model, losses of classes.

B rows, T tokens, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.loss import IGNORED_TARGET
from orchestrator.data.load.next_sentence import PairIds
from orchestrator.objectives.protocol import Tensors
from orchestrator.objectives.scores.arithmetic import Series
from orchestrator.objectives.scores.result import Scores, State

IDS, SEGMENTS, MASK, TARGETS = "input_ids", "token_type_ids", "attention_mask", "targets"
LOSS = "loss"
LEAST_CONTEXT = 5
"""[CLS], [SEP] twice, and a token of each of two texts."""
_MULTIPLE = 8

Ids = npt.NDArray[Any]
Texts = tuple[Ids, Ids | None]
"""The ids of one text, or of two."""


def padded_length(longest: int, context: int) -> int:
    """The longest row's length, rounded up so that kernels work on whole tiles, and lengths repeat."""
    return min(context, -(-longest // _MULTIPLE) * _MULTIPLE)


def framed(rows: Sequence[Texts], frame: PairIds, *, context: int) -> Tensors:
    """[CLS] a [SEP], or [CLS] a [SEP] b [SEP], padded: ids [B, T], segments [B, T], and which are no padding [B, T].

    Without rows there is one with nothing in its frame: a pass that counts nothing.
    """
    texts: Sequence[Texts] = rows or [(np.zeros(0, dtype=np.int64), None)]
    lengths_B = np.array([2 + len(a) + (0 if b is None else len(b) + 1) for a, b in texts])
    ids_BT = np.full((len(texts), padded_length(int(lengths_B.max()), context)), frame.pad, dtype=np.int64)
    segments_BT = np.zeros_like(ids_BT)
    for i, (a, b) in enumerate(texts):
        second, end = len(a) + 2, lengths_B[i]
        ids_BT[i, 0], ids_BT[i, 1 : second - 1], ids_BT[i, second - 1] = frame.cls, a, frame.sep
        if b is not None:
            ids_BT[i, second : end - 1], ids_BT[i, end - 1] = b, frame.sep
            segments_BT[i, second:end] = 1
    mask_BT = np.arange(ids_BT.shape[1]) < lengths_B[:, None]
    arrays = {IDS: ids_BT, SEGMENTS: segments_BT, MASK: mask_BT}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def model_inputs(tensors: Tensors) -> Tensors:
    """The part of a batch that an encoder reads."""
    return {name: tensors[name] for name in (IDS, SEGMENTS, MASK) if name in tensors}


def read_by(model: nn.Module, tensors: Tensors) -> Tensors:
    """The outputs of an encoder's head, by name."""
    outputs: Tensors = model(tensors[IDS], tensors.get(SEGMENTS), tensors.get(MASK))
    return outputs


def hidden_by(model: nn.Module, tensors: Tensors) -> Tensor:
    """The vectors of the backbone below a head, [B, T, D]."""
    head: Any = model
    x_BTD: Tensor = head.backbone.hidden(tensors[IDS], tensors.get(SEGMENTS), tensors.get(MASK))
    return x_BTD


def class_loss(logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    """The sum of the cross entropies of classes in fp32: logits [..., C], targets [...]."""
    return F.cross_entropy(
        logits.float().flatten(0, -2),
        targets.flatten(),
        ignore_index=IGNORED_TARGET,
        label_smoothing=label_smoothing,
        reduction="sum",
    )


class MeanLoss:
    """The mean of summed losses; rounded once, so it is the same for any number of ranks."""

    def __init__(self) -> None:
        self._nats, self._count = Series(), 0

    def add(self, nats: float, count: int) -> None:
        """A loss summed over `count` targets."""
        self._nats.add(nats)
        self._count += count

    def state(self) -> State:
        """What was added."""
        return {"nats": self._nats.values(), "count": self._count}

    def merge(self, states: Iterable[State]) -> None:
        """Add what others have added."""
        for state in states:
            self._nats.add(state["nats"])
            self._count += state["count"]

    def beside(self, scores: Scores) -> Scores:
        """The scores with `loss` before them."""
        return Scores({"loss": self._nats.sum() / self._count, **scores.metrics}, scores.tables)
