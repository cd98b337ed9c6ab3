"""Which span of a context answers a question, from the logits of its windows (Devlin et al. 2018, 4.2 and 4.3). Pure.

W windows, T positions of each. All valid spans are looked at, not only those of the highest starts and ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.objectives.scores.arithmetic import Floats, Ints

Logits = npt.NDArray[np.floating[Any]]
OUTSIDE = -1
"""In `context_WT`: a position that holds no token of the context (question, special tokens, padding)."""


@dataclass(frozen=True, order=True)
class ScoredSpan:
    """Tokens of the context, both inside, and the sum of the logits of its start and its end."""

    first: int
    last: int
    score: float


def best_spans(
    start_WT: Logits, end_WT: Logits, context_WT: npt.NDArray[np.integer[Any]], *, max_answer_tokens: int, count: int
) -> list[ScoredSpan]:
    """The best spans of one question, highest score first, each once with its score in its best window.

    Among equal scores the earlier span comes first, then the shorter. Logits that are not finite are passed over.

    Args:
        start_WT: logits of the answer's first token; shorter windows are padded with anything.
        end_WT: logits of its last token.
        context_WT: which token of the context a position holds, or OUTSIDE.
        max_answer_tokens: the length of a span at most.
        count: how many spans at most; fewer if there are not as many.

    Raises:
        ValueError: the three arrays have not one shape [W, T], or a limit is below 1.
    """
    _require_limits(max_answer_tokens=max_answer_tokens, count=count)
    _require_shapes(start_WT, end_WT, context_WT)
    firsts, lasts, scores = _candidates(start_WT, end_WT, context_WT, max_answer_tokens)
    # A span stands once in a window, so the best `count` different ones are among this many. Whole ties are kept.
    enough = count * len(start_WT)
    if len(scores) > enough:
        kept = scores >= np.partition(scores, -enough)[-enough]
        firsts, lasts, scores = firsts[kept], lasts[kept], scores[kept]
    best: dict[tuple[int, int], float] = {}
    for i in np.lexsort((lasts, firsts, -scores)):
        best.setdefault((int(firsts[i]), int(lasts[i])), float(scores[i]))
        if len(best) == count:
            break
    return [ScoredSpan(first, last, score) for (first, last), score in best.items()]


def choose_span(
    start_WT: Logits,
    end_WT: Logits,
    context_WT: npt.NDArray[np.integer[Any]],
    *,
    max_answer_tokens: int,
    no_answer_margin: float | None = None,
) -> ScoredSpan | None:
    """The best span, or None for no answer. Arguments and errors as `best_spans`.

    Args:
        no_answer_margin: an answer must score more than no answer by more than this, which is tuned on validation data
            (0 to begin with). None if every question has an answer: then the result is None only if no span is valid.
            No answer scores start + end of position 0 ([CLS]), in the window where that is lowest: a question without
            an answer has none in any of its windows.
    """
    found = best_spans(start_WT, end_WT, context_WT, max_answer_tokens=max_answer_tokens, count=1)
    if not found or no_answer_margin is None:
        return found[0] if found else None
    no_answer = float((start_WT[:, 0].astype(np.float64) + end_WT[:, 0]).min())
    return found[0] if found[0].score > no_answer + no_answer_margin else None


def _candidates(
    start_WT: Logits, end_WT: Logits, context_WT: npt.NDArray[np.integer[Any]], max_answer_tokens: int
) -> tuple[Ints, Ints, Floats]:
    """First token, last token and score of every valid span of every window."""
    start_WT, end_WT = start_WT.astype(np.float64), end_WT.astype(np.float64)
    width = context_WT.shape[1]
    firsts, lasts, scores = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)], [np.zeros(0)]
    for longer in range(min(max_answer_tokens, width)):
        first_WS, last_WS = context_WT[:, : width - longer], context_WT[:, longer:]
        with np.errstate(invalid="ignore"):  # inf - inf is NaN, which is not finite either
            score_WS = start_WT[:, : width - longer] + end_WT[:, longer:]
        valid_WS = (first_WS != OUTSIDE) & (last_WS == first_WS + longer) & np.isfinite(score_WS)
        firsts.append(first_WS[valid_WS].astype(np.int64))
        lasts.append(last_WS[valid_WS].astype(np.int64))
        scores.append(score_WS[valid_WS])
    return np.concatenate(firsts), np.concatenate(lasts), np.concatenate(scores)


def _require_limits(**limits: int) -> None:
    for name, value in limits.items():
        if value < 1:
            raise ValueError(f"{name} is {value}: it must be at least 1")


def _require_shapes(start_WT: Logits, end_WT: Logits, context_WT: npt.NDArray[np.integer[Any]]) -> None:
    shapes = (start_WT.shape, end_WT.shape, context_WT.shape)
    if len(set(shapes)) > 1 or start_WT.ndim != 2 or not start_WT.size:
        raise ValueError(f"starts, ends and context must have one shape [windows, positions]: they have {shapes}")
