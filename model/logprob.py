"""What a network says of one token. Imports no torch: whoever shows it need not."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely the network held one token to be, in nats."""

    token: int
    logprob: float | None
    """null: nothing stands before it, so that the network said nothing of it."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens in its place and their log-probabilities, falling; the token itself is among them or not."""
