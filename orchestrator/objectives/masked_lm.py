"""Predict hidden tokens, and with BERT's recipe whether two texts follow each other: pre-training of encoders.

Devlin et al. 2018, 3.1; without next sentences RoBERTa, Liu et al. 2019. Samples: `masked_data` and `masked_pairs`.

B samples, T tokens, D width, V vocabulary, K hidden tokens of a sample at most, N of all samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.loss import default_chunk_rows, projected_cross_entropy
from orchestrator.objectives.encoder_inputs import TARGETS, class_loss, hidden_by, model_inputs, read_by
from orchestrator.objectives.protocol import Batch, Scorer, Tensors
from orchestrator.objectives.scores.language import MaskedLanguageScores
from orchestrator.objectives.scores.result import Scores

MLM, NEXT_SENTENCE = "mlm", "next_sentence"
PLACES, FOLLOWS = "masked_positions", "next_sentence_targets"
"""[B, K] the places of hidden tokens; [B] 0 where the second text follows the first, 1 where it is from elsewhere."""
GUESSES = "guesses"


class MaskedLM:
    """`Objective` of encoders in pre-training."""

    def __init__(self, *, next_sentence: bool, label_smoothing: float = 0.0) -> None:
        self._next_sentence, self._label_smoothing = next_sentence, label_smoothing
        self.parts: tuple[str, ...] = (MLM, NEXT_SENTENCE) if next_sentence else (MLM,)

    def losses(self, model: nn.Module, tensors: Tensors) -> Tensors:
        """As Objective. Only hidden tokens are projected, and a few of them at a time."""
        head: Any = model
        smoothing = self._label_smoothing if model.training else 0.0
        x_BTD = hidden_by(model, tensors)
        found = {
            MLM: projected_cross_entropy(
                head.transform(_at(x_BTD, tensors[PLACES])).flatten(0, 1),
                head.projection_weight_VD,
                tensors[TARGETS].flatten(),
                bias_V=head.projection_bias_V,
                label_smoothing=smoothing,
            )
        }
        if self._next_sentence:
            found[NEXT_SENTENCE] = class_loss(head.next_sentence_logits(x_BTD), tensors[FOLLOWS], smoothing)
        return found

    def outputs(self, model: nn.Module, tensors: Tensors) -> Tensors:
        """As Objective: `logits` [B, T, V], in pre-training with pairs `next_sentence_logits` [B, 2].

        Of a batch with targets `guesses` [B, K] stand for the logits: the likeliest of V at the hidden tokens alone.
        """
        if PLACES not in tensors:
            return read_by(model, tensors)
        head: Any = model
        x_BTD = hidden_by(model, tensors)
        x_BKD = head.transform(_at(x_BTD, tensors[PLACES]))
        guesses_N = _likeliest(x_BKD.flatten(0, 1), head.projection_weight_VD, head.projection_bias_V)
        found = {GUESSES: guesses_N.view(x_BKD.shape[:2])}
        if self._next_sentence:
            found["next_sentence_logits"] = head.next_sentence_logits(x_BTD)
        return found

    def inputs(self, tensors: Tensors) -> Tensors:
        """As Objective."""
        return model_inputs(tensors)

    def scorer(self) -> Scorer:
        """As Objective."""
        return MaskedLMScorer()


def _at(x_BTD: Tensor, places_BK: Tensor) -> Tensor:
    """The vectors at some places of each row, [B, K, D]."""
    return x_BTD.gather(1, places_BK[..., None].expand(-1, -1, x_BTD.shape[-1]))


def _likeliest(x_ND: Tensor, weight_VD: Tensor, bias_V: Tensor) -> Tensor:
    """The token of the highest logit, [N]; the logits of a few rows at a time."""
    rows = default_chunk_rows(x_ND.device.type, len(weight_VD))
    return torch.cat([F.linear(chunk_CD, weight_VD, bias_V).argmax(-1) for chunk_CD in torch.split(x_ND, rows)])


class MaskedLMScorer:
    """`Scorer` of hidden tokens and of pairs: losses, perplexity, accuracies."""

    needs_outputs = True

    def __init__(self) -> None:
        self._scores = MaskedLanguageScores()

    def add(self, batch: Batch, losses: Mapping[str, float], outputs: Tensors) -> None:
        """As Scorer."""
        right = int((outputs[GUESSES] == batch.tensors[TARGETS]).sum())
        self._scores.add(losses[MLM], batch.counts[MLM], right)
        if NEXT_SENTENCE in losses:
            right = int((outputs["next_sentence_logits"].argmax(-1) == batch.tensors[FOLLOWS]).sum())
            self._scores.add_pairs(losses[NEXT_SENTENCE], batch.counts[NEXT_SENTENCE], right)

    def state(self) -> Any:
        """As Scorer."""
        return self._scores.state()

    def result(self, states: Sequence[Any]) -> Scores:
        """As Scorer."""
        scores = MaskedLanguageScores()
        scores.merge(states)
        return scores.result()
