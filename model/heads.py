"""What stands on an encoder. Every head is one module that holds its backbone, and names its outputs.

Shapes: B rows, T tokens, N of them, D width, V vocabulary, C classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.bert import Bert, initialise_encoder
from model.config import HeadConfig, ModelConfig
from model.mlp import make_norm

__all__ = [
    "Embedder",
    "EncoderHead",
    "HeadConfig",
    "MaskedLM",
    "QuestionAnswering",
    "SequenceClassifier",
    "TokenClassifier",
]

_Self = TypeVar("_Self", bound="EncoderHead")


class EncoderHead(nn.Module, ABC):
    """A head and the encoder below it."""

    def __init__(self, config: ModelConfig, head: HeadConfig, *, pooler: bool) -> None:
        super().__init__()
        self.config, self.head = config, head
        self.backbone = Bert(config, pooler=pooler)
        self.dropout = nn.Dropout(config.dropout)

    def initialise(self: _Self, seed: int) -> _Self:
        """Draw all weights from `seed`, the backbone's and the head's; see `initialise_encoder`."""
        initialise_encoder(self, seed)
        return self

    @abstractmethod
    def forward(
        self, ids_BT: Tensor, segments_BT: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Outputs by name; for the arguments see `Bert.hidden`."""


class MaskedLM(EncoderHead):
    """The words behind masked tokens; with `pretraining` also whether the second sentence follows the first."""

    def __init__(self, config: ModelConfig, head: HeadConfig) -> None:
        """The projection is the word table; its bias is the head's own."""
        pretraining = head.kind == "pretraining"
        super().__init__(config, head, pooler=pretraining)
        self.dense = nn.Linear(config.width, config.width)
        self.norm = make_norm(config)
        self.bias = nn.Parameter(torch.empty(config.vocab_size))
        self.next_sentence = nn.Linear(config.width, 2) if pretraining else None

    def forward(
        self, ids_BT: Tensor, segments_BT: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> dict[str, Tensor]:
        """`logits` [B, T, V]; with `pretraining` also `next_sentence_logits` [B, 2]: follows, is from elsewhere."""
        x_BTD = self.backbone.hidden(ids_BT, segments_BT, mask_BT)
        outputs = {"logits": F.linear(self.transform(x_BTD), self.projection_weight_VD, self.projection_bias_V)}
        if self.next_sentence is not None:
            outputs["next_sentence_logits"] = self.next_sentence_logits(x_BTD)
        return outputs

    def transform(self, x_ND: Tensor) -> Tensor:
        """What the projection multiplies, from the backbone's vectors: of all tokens, or of the masked ones alone."""
        y_ND: Tensor = self.norm(F.gelu(self.dense(x_ND)))
        return y_ND

    def next_sentence_logits(self, x_BTD: Tensor) -> Tensor:
        """[B, 2] from the backbone's vectors: the second sentence follows the first, or is from elsewhere.

        Raises:
            ValueError: the head is `mlm`, which does not say.
        """
        if self.next_sentence is None:
            raise ValueError("the head 'mlm' has no next-sentence logits; 'pretraining' has")
        logits_B2: Tensor = self.next_sentence(self.backbone.pooled(x_BTD))
        return logits_B2

    @property
    def projection_weight_VD(self) -> Tensor:
        """What `transform`'s result is multiplied by, for losses that never hold all logits."""
        return self.backbone.embed.weight

    @property
    def projection_bias_V(self) -> Tensor:
        """What is added to that product."""
        return self.bias


class SequenceClassifier(EncoderHead):
    """A class for each row, from its pooled vector."""

    def __init__(self, config: ModelConfig, head: HeadConfig) -> None:
        """A logit for each label."""
        super().__init__(config, head, pooler=True)
        self.classify = nn.Linear(config.width, len(head.labels))

    def forward(
        self, ids_BT: Tensor, segments_BT: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> dict[str, Tensor]:
        """`logits` [B, C]."""
        x_BTD = self.backbone.hidden(ids_BT, segments_BT, mask_BT)
        return {"logits": self.classify(self.dropout(self.backbone.pooled(x_BTD)))}


class TokenClassifier(EncoderHead):
    """A class for each token, such as the kind of entity it is part of."""

    def __init__(self, config: ModelConfig, head: HeadConfig) -> None:
        """A logit for each label."""
        super().__init__(config, head, pooler=False)
        self.classify = nn.Linear(config.width, len(head.labels))

    def forward(
        self, ids_BT: Tensor, segments_BT: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> dict[str, Tensor]:
        """`logits` [B, T, C]."""
        return {"logits": self.classify(self.dropout(self.backbone.hidden(ids_BT, segments_BT, mask_BT)))}


class QuestionAnswering(EncoderHead):
    """Where in the row the answer begins and ends."""

    def __init__(self, config: ModelConfig, head: HeadConfig) -> None:
        """Two logits for each token."""
        super().__init__(config, head, pooler=False)
        self.span = nn.Linear(config.width, 2)

    def forward(
        self, ids_BT: Tensor, segments_BT: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> dict[str, Tensor]:
        """`logits` [B, T, 2]: the answer begins at this token, ends with it."""
        return {"logits": self.span(self.backbone.hidden(ids_BT, segments_BT, mask_BT))}


class Embedder(EncoderHead):
    """A vector for each row: the mean over its tokens (Reimers and Gurevych 2019)."""

    def __init__(self, config: ModelConfig, head: HeadConfig) -> None:
        """No weights of its own."""
        super().__init__(config, head, pooler=False)

    def forward(
        self, ids_BT: Tensor, segments_BT: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> dict[str, Tensor]:
        """`embeddings` [B, D], not scaled to length 1; 0 for a row of padding alone."""
        x_BTD = self.backbone.hidden(ids_BT, segments_BT, mask_BT)
        if mask_BT is None:
            return {"embeddings": x_BTD.mean(1)}
        weights_BT1 = mask_BT.type_as(x_BTD)[..., None]
        return {"embeddings": (x_BTD * weights_BT1).sum(1) / weights_BT1.sum(1).clamp(min=1)}
