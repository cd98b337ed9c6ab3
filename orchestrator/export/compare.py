"""Whether two sets of logits come from the same model: the rules of the probe, and their thresholds.

Logits are [B, ..., C]: B prompts, then positions (T of them, or none), then C classes, such as the vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import HeadKind

EXACT_TOLERANCE = 1e-4
"""fp32 against fp32: largest |difference|, relative to the largest |logit| where that is above 1."""
CLEAR_MARGIN = 0.2
"""Another type than fp32: the likeliest class must agree wherever it leads by more than this."""
MEAN_LOGPROB_TOLERANCE = 0.02
"""Another type than fp32: mean |difference| of log-probabilities over all classes and positions."""
LARGE_LOGIT = 16.0
"""Another type than fp32: beyond this |logit| both limits grow with the largest, as bf16's rounding does.

Measured on decoders trained here in bf16 (4 layers, width 256, loss 3.3, largest |logit| 15): mean 0.009, and no
token that led by more than 0.04 lost its lead; 50 % noise on one projection gives a mean of 0.033.
"""
FEW_PREDICTIONS = 4.0
"""Another type than fp32: where each prompt has one prediction, the mean of so few may be this much larger.

Measured on classifiers of texts (6 layers, width 128, during training): 0.002 as a rule, 0.027 for one pair in 32.
"""


@dataclass(frozen=True)
class Difference:
    """Where two sets of logits differ the most, and by how much."""

    prompt: int
    position: int | None
    """None where a prompt has one prediction."""
    detail: str

    def told(self, prompt: str) -> str:
        """As a message says it; `prompt` is the prompt's text."""
        where = "" if self.position is None else f", position {self.position}"
        return f"prompt {prompt}{where}: {self.detail}"


def comparable(logits: Tensor, head: HeadKind) -> Tensor:
    """Logits with the classes last: an answer's beginning and its end are each chosen among the positions."""
    return logits.transpose(1, 2) if head == "question-answering" and logits.dim() == 3 else logits


def exact_difference(got: Tensor, want: Tensor) -> Difference | None:
    """What breaks the rule for fp32 against fp32; None if nothing does."""
    if mismatch := _shape_mismatch(got, want):
        return mismatch
    error = (got.float() - want.float()).abs().amax(-1)
    allowed = EXACT_TOLERANCE * max(1.0, float(want.abs().max()))
    # Not `>`: a NaN on either side must fail, and compares false with everything.
    if bool((error <= allowed).all()):
        return None
    worst, at = _worst(error)
    return Difference(*at, f"a logit differs by {worst:.3g}, allowed is {allowed:.3g}")


def rounded_difference(got: Tensor, want: Tensor) -> Difference | None:
    """What breaks the rule where one side was computed in another type than fp32; None if nothing does."""
    if mismatch := _shape_mismatch(got, want):
        return mismatch
    got, want = got.float(), want.float()
    scale = max(1.0, float(want.abs().max()) / LARGE_LOGIT)
    top = want.topk(2, -1).values
    margin = top[..., 0] - top[..., 1]
    flipped = (got.argmax(-1) != want.argmax(-1)) & (margin > CLEAR_MARGIN * scale)
    if bool(flipped.any()):
        lead, at = _worst(margin * flipped)
        return Difference(*at, f"the likeliest one differs, where it leads by {lead:.3g}")
    error = (got.log_softmax(-1) - want.log_softmax(-1)).abs().mean(-1)
    allowed = MEAN_LOGPROB_TOLERANCE * scale * (FEW_PREDICTIONS if want.dim() == 2 else 1.0)
    if bool(error.mean() <= allowed):
        return None
    _, at = _worst(error)
    found = float(error.mean())
    return Difference(*at, f"log-probabilities differ by {found:.3g} in the mean, allowed is {allowed:.3g}")


def _shape_mismatch(got: Tensor, want: Tensor) -> Difference | None:
    if got.shape == want.shape:
        return None
    return Difference(0, None, f"logits of shape {list(got.shape)}, recorded are {list(want.shape)}")


def _worst(error: Tensor) -> tuple[float, tuple[int, int | None]]:
    """The largest of [B, ...], with its prompt and position; NaN counts as the largest."""
    flat = int(torch.nan_to_num(error, nan=torch.inf).argmax())
    per_prompt = math.prod(error.shape[1:])
    position = None if error.dim() == 1 else flat % per_prompt % error.shape[-1]
    return float(error.flatten()[flat]), (flat // per_prompt, position)
