"""Whether two sets of logits come from the same model: the rules of the probe, and their thresholds.

Shapes: B prompts, T positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

EXACT_TOLERANCE = 1e-4
"""fp32 against fp32: largest |difference|, relative to the largest |logit| where that is above 1."""
CLEAR_MARGIN = 0.2
"""Another type than fp32: the likeliest token must agree wherever it leads by more than this."""
MEAN_LOGPROB_TOLERANCE = 0.02
"""Another type than fp32: mean |difference| of log-probabilities over all tokens and positions."""
LARGE_LOGIT = 16.0
"""Another type than fp32: beyond this |logit| both limits grow with the largest, as bf16's rounding does.

Measured on decoders trained here in bf16 (4 layers, width 256, loss 3.3, largest |logit| 15): mean 0.009, and no
token that led by more than 0.04 lost its lead; 50 % noise on one projection gives a mean of 0.033.
"""


@dataclass(frozen=True)
class Difference:
    """Where two sets of logits differ the most, and by how much."""

    prompt: int
    position: int
    detail: str


def exact_difference(got_BTV: Tensor, want_BTV: Tensor) -> Difference | None:
    """What breaks the rule for fp32 against fp32; None if nothing does."""
    if mismatch := _shape_mismatch(got_BTV, want_BTV):
        return mismatch
    error_BT = (got_BTV.float() - want_BTV.float()).abs().amax(-1)
    allowed = EXACT_TOLERANCE * max(1.0, float(want_BTV.abs().max()))
    # Not `>`: a NaN on either side must fail, and compares false with everything.
    if bool((error_BT <= allowed).all()):
        return None
    prompt, position = _worst(error_BT)
    found = float(error_BT[prompt, position])
    return Difference(prompt, position, f"a logit differs by {found:.3g}, allowed is {allowed:.3g}")


def rounded_difference(got_BTV: Tensor, want_BTV: Tensor) -> Difference | None:
    """What breaks the rule where one side was computed in another type than fp32; None if nothing does."""
    if mismatch := _shape_mismatch(got_BTV, want_BTV):
        return mismatch
    got_BTV, want_BTV = got_BTV.float(), want_BTV.float()
    scale = max(1.0, float(want_BTV.abs().max()) / LARGE_LOGIT)
    top_BT2 = want_BTV.topk(2, -1).values
    margin_BT = top_BT2[..., 0] - top_BT2[..., 1]
    flipped_BT = (got_BTV.argmax(-1) != want_BTV.argmax(-1)) & (margin_BT > CLEAR_MARGIN * scale)
    if bool(flipped_BT.any()):
        prompt, position = _worst(margin_BT * flipped_BT)
        margin = float(margin_BT[prompt, position])
        return Difference(prompt, position, f"the likeliest token differs, where it leads by {margin:.3g}")
    error_BT = (got_BTV.log_softmax(-1) - want_BTV.log_softmax(-1)).abs().mean(-1)
    allowed = MEAN_LOGPROB_TOLERANCE * scale
    if bool(error_BT.mean() <= allowed):
        return None
    prompt, position = _worst(error_BT)
    found = float(error_BT.mean())
    detail = f"log-probabilities differ by {found:.3g} in the mean, allowed is {allowed:.3g}"
    return Difference(prompt, position, detail)


def _shape_mismatch(got_BTV: Tensor, want_BTV: Tensor) -> Difference | None:
    if got_BTV.shape == want_BTV.shape:
        return None
    return Difference(0, 0, f"logits of shape {list(got_BTV.shape)}, recorded are {list(want_BTV.shape)}")


def _worst(error_BT: Tensor) -> tuple[int, int]:
    """Prompt and position of the largest value; NaN counts as the largest."""
    flat = int(torch.nan_to_num(error_BT, nan=torch.inf).argmax())
    return flat // error_BT.shape[1], flat % error_BT.shape[1]
