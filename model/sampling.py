"""Draw the next token of many sequences at once, each by settings of its own.

What is drawn for a row depends on its logits, its settings and its number between 0 and 1 alone, not on other rows.

Shapes: N rows, V vocabulary, A allowed entries of it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as Ids
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_LEAST_TEMPERATURE = torch.finfo(torch.float32).tiny
"""What is smaller is 0 to fp32, and 0 divided by it no number."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How one token is drawn."""

    temperature: float
    """Divides the logits; 0 takes the likeliest."""
    top_p: float = 1.0
    """Draw among the fewest likeliest tokens that reach this share (Holtzman et al. 2019)."""
    top_k: int = 0
    """Draw among this many likeliest tokens (Fan et al. 2018); 0: all."""
    min_p: float = 0.0
    """Draw among tokens at least this share as likely as the likeliest (Nguyen et al. 2024)."""

    def __post_init__(self) -> None:
        """Raise a ValueError that names the setting that is out of its range."""
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature {self.temperature} is not a number from 0 on")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p} is not above 0 and at most 1")
        if self.top_k < 0:
            raise ValueError(f"top_k {self.top_k} is negative")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p {self.min_p} is not between 0 and 1")

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature == 0

    @property
    def of_all(self) -> bool:
        """Whether every token may be drawn."""
        return self.top_p == 1 and self.top_k == 0 and self.min_p == 0


@dataclass(frozen=True, kw_only=True)
class Penalties:
    """What changes logits before one is drawn."""

    presence: float = 0.0
    """Taken from the logit of each token that was made already."""
    frequency: float = 0.0
    """Taken from it for each time that it was made."""
    repetition: float = 1.0
    """Divides the logit, if above 0, and else multiplies it, of each token read or made (Keskar et al. 2019)."""
    bias: Mapping[int, float]
    """Added to the logits of these ids."""

    def __post_init__(self) -> None:
        """Raise a ValueError that names the setting that is out of its range."""
        if not 0 < self.repetition < math.inf:
            raise ValueError(f"repetition_penalty {self.repetition} is not a number above 0")
        named = {"presence_penalty": self.presence, "frequency_penalty": self.frequency}
        for name, value in (*named.items(), *((f"logit_bias of {id}", value) for id, value in self.bias.items())):
            if not math.isfinite(value):
                raise ValueError(f"{name} {value} is not a number")

    @property
    def none(self) -> bool:
        """Whether logits stay as they are."""
        return not (self.presence or self.frequency or self.bias) and self.repetition == 1


def penalise(
    logits_A: Tensor, penalties: Penalties, *, read: Ids[int], made: Counter[int], barred: Ids[int] = frozenset()
) -> None:
    """Change one row's logits in place, as its settings have it.

    Args:
        read: the prompt's ids.
        made: how often each id was made.
        barred: ids that may not be drawn now.
    """
    allowed = len(logits_A)
    if penalties.repetition != 1:
        ids = torch.tensor([id for id in read | made.keys() if id < allowed], device=logits_A.device)
        own = logits_A[ids]
        logits_A[ids] = torch.where(own > 0, own / penalties.repetition, own * penalties.repetition)
    if made and (penalties.presence or penalties.frequency):
        ids = torch.tensor(list(made), device=logits_A.device)
        counts = torch.tensor(list(made.values()), dtype=torch.float32, device=logits_A.device)
        logits_A[ids] -= counts * penalties.frequency + penalties.presence
    for id, bias in penalties.bias.items():
        if id < allowed:
            logits_A[id] += bias
    for id in barred:
        if id < allowed:
            logits_A[id] = -math.inf


def draw(logits_NA: Tensor, choices: Sequence[Choice], chances: Sequence[float]) -> list[int]:
    """An id for each row.

    Args:
        logits_NA: of the ids that may be drawn, fp32.
        choices: how; none is greedy.
        chances: numbers from 0 to below 1: of all that may be drawn, in a fixed order, the one at this share is.
    """
    device = logits_NA.device
    temperatures_N1 = torch.tensor([max(c.temperature, _LEAST_TEMPERATURE) for c in choices], device=device)[:, None]
    # The largest becomes 0 first: a tiny temperature may then take the others to -inf, which is right.
    shares_NA = torch.softmax((logits_NA - logits_NA.amax(-1, keepdim=True)) / temperatures_N1, -1)
    part = [n for n, choice in enumerate(choices) if not choice.of_all]
    if part:
        likely_NA = _likely(shares_NA[part], [choices[n] for n in part])
        shares_NA = likely_NA if len(part) == len(choices) else shares_NA.index_put((torch.tensor(part),), likely_NA)
    return _at(shares_NA, chances)


def _likely(shares_NA: Tensor, choices: list[Choice]) -> Tensor:
    """The shares of those that may be drawn, and 0 for the others; the last of them brings its equals."""
    device, width = shares_NA.device, shares_NA.shape[1]
    sorted_NA = _descending(shares_NA)
    top_k_N1 = torch.tensor([c.top_k or width for c in choices], device=device)[:, None]
    top_p_N1 = torch.tensor([c.top_p for c in choices], dtype=torch.float64, device=device)[:, None]
    min_p_N1 = torch.tensor([c.min_p for c in choices], device=device)[:, None]
    first_NA = sorted_NA * (torch.arange(width, device=device) < top_k_N1)
    sums_NA = first_NA.cumsum(-1, dtype=torch.float64)
    before_NA = sums_NA - first_NA
    kept_NA = (first_NA > 0) & (before_NA < top_p_N1 * sums_NA[:, -1:]) & (first_NA >= min_p_N1 * first_NA[:, :1])
    least_N1 = sorted_NA.gather(1, kept_NA.sum(-1, keepdim=True).clamp(min=1) - 1)
    return shares_NA * (shares_NA >= least_N1)


def _descending(shares_NA: Tensor) -> Tensor:
    """Each row sorted. On a CPU numpy does it thirty times faster."""
    if shares_NA.device.type == "cpu":
        return torch.from_numpy(np.sort(shares_NA.numpy(), axis=-1)).flip(-1)
    return shares_NA.sort(-1, descending=True).values


def _at(shares_NA: Tensor, chances: Sequence[float]) -> list[int]:
    """Where in each row, its numbers added up from the left, the sum exceeds this share of the whole."""
    sums_NA = shares_NA.cumsum(-1, dtype=torch.float64)
    totals_N1 = sums_NA[:, -1:].contiguous()
    wanted_N1 = totals_N1 * torch.tensor(chances, dtype=torch.float64, device=shares_NA.device)[:, None]
    found_N1 = torch.searchsorted(sums_NA, wanted_N1, right=True)
    # Rounding may reach the whole: then it is the last that has a share at all.
    last_N1 = torch.searchsorted(sums_NA, totals_N1)
    ids: list[int] = torch.minimum(found_N1, last_N1)[:, 0].tolist()
    return ids
