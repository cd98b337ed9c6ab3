"""What the objectives of encoders share: framed and padded rows, the call of the model, and objectives of classes.

B rows, T tokens, C classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.loss import IGNORED_TARGET
from orchestrator.data.load.next_sentence import PairIds
from orchestrator.objectives.protocol import Scorer, Tensors

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


class ClassObjective(ABC):
    """`Objective` of one class a target; what it is scored by is the subclass's own."""

    parts: tuple[str, ...] = (LOSS,)

    def __init__(self, labels: Sequence[str], *, label_smoothing: float = 0.0) -> None:
        self._labels, self._label_smoothing = tuple(labels), label_smoothing

    def losses(self, model: nn.Module, tensors: Tensors) -> Tensors:
        """As Objective."""
        smoothing = self._label_smoothing if model.training else 0.0
        return {LOSS: class_loss(read_by(model, tensors)["logits"], tensors[TARGETS], smoothing)}

    def outputs(self, model: nn.Module, tensors: Tensors) -> Tensors:
        """As Objective: `logits` [..., C], a score for each class of each target."""
        return read_by(model, tensors)

    def inputs(self, tensors: Tensors) -> Tensors:
        """As Objective."""
        return model_inputs(tensors)

    @abstractmethod
    def scorer(self) -> Scorer:
        """As Objective."""
