"""What tokens cost. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Price:
    """Of one model, for a million tokens, in any currency."""

    prompt_per_million: float
    completion_per_million: float

    def __post_init__(self) -> None:
        if not 0 <= self.prompt_per_million < 1e6 or not 0 <= self.completion_per_million < 1e6:
            raise ValueError(f"a price for a million tokens is between 0 and a million, not {self}")

    def nano(self, prompt_tokens: int, completion_tokens: int) -> int:
        """The cost in billionths of the unit, rounded to a whole one for each request."""
        return round(
            prompt_tokens * self.prompt_per_million * 1e3 + completion_tokens * self.completion_per_million * 1e3
        )


Prices = Mapping[str, Price]
"""By model; a model that is not in it has no price."""


def cost_nano(prices: Prices, model: str, *, prompt_tokens: int, completion_tokens: int) -> int | None:
    """What a request costs; None: its model has no price."""
    price = prices.get(model)
    return None if price is None else price.nano(prompt_tokens, completion_tokens)
