"""Whether a request fits into the limits of its key, when it will, and what its client is told of them. Pure.

The window slides: a request counts from its admission for 60 seconds, with all tokens that it may make until it is
settled, then with those that it made.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

WINDOW_S = 60.0
_FOREVER_S = 3600.0
"""What a client is told that asks for what no waiting gives: it may look again in an hour."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of a key. None: no limit."""

    rpm: int | None
    tpm: int | None
    budget_nano: int | None


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What of the limits is taken, by requests in the window and by money spent."""

    requests: int
    tokens: int
    spent_nano: int
    reserved_nano: int
    """For requests under way, at their dearest."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """What one request takes at most."""

    tokens: int
    cost_nano: int


@dataclass(frozen=True, kw_only=True)
class Lack:
    """Why a request does not fit."""

    requests: int = 0
    """That must leave the window first."""
    tokens: int = 0
    over_budget: bool = False
    never: bool = False
    """However long it waits."""


def lack(limits: Limits, standing: Standing, need: Need) -> Lack | None:
    """What is missing for the request; None: it fits."""
    if limits.tpm is not None and need.tokens > limits.tpm:
        return Lack(tokens=need.tokens, never=True)
    if limits.budget_nano is not None:
        left = limits.budget_nano - standing.spent_nano - need.cost_nano
        if left < standing.reserved_nano:
            return Lack(over_budget=True, never=left < 0)
    requests = 0 if limits.rpm is None else max(0, standing.requests + 1 - limits.rpm)
    tokens = 0 if limits.tpm is None else max(0, standing.tokens + need.tokens - limits.tpm)
    return Lack(requests=requests, tokens=tokens) if requests or tokens else None


def wait_s(short: Lack, counted: Iterable[tuple[float, int]], *, now: float) -> float:
    """Seconds until the request fits if nothing else comes.

    Args:
        short: what is missing.
        counted: moment and tokens of what is in the window, oldest first; read only as far as is needed.
        now: by the same clock.
    """
    if short.never:
        return _FOREVER_S
    if short.over_budget:
        return 1.0  # requests under way may cost less than was set aside for them
    requests = tokens = 0
    for at, size in counted:
        requests, tokens = requests + 1, tokens + size
        if requests >= short.requests and tokens >= short.tokens:
            return max(0.0, at + WINDOW_S - now)
    return WINDOW_S


def refusal_headers(wait: float, *, never: bool) -> dict[str, str]:
    """When to come again, as OpenAI's clients and all others read it. Rounded up: who keeps to it is not early."""
    headers = {"Retry-After": str(max(1, math.ceil(wait))), "retry-after-ms": str(max(1, math.ceil(wait * 1000)))}
    return {**headers, "x-should-retry": "false"} if never else headers


def limit_headers(limits: Limits, standing: Standing, *, reset_s: float) -> dict[str, str]:
    """Limits, what is left, and when all of it is there again, under OpenAI's names.

    Args:
        limits: of the key; a limit that it does not have has no header.
        standing: with the request itself, where it was let in.
        reset_s: seconds until the window is empty.
    """
    pairs = (("requests", limits.rpm, standing.requests), ("tokens", limits.tpm, standing.tokens))
    headers: dict[str, str] = {}
    for name, limit, taken in pairs:
        if limit is not None:
            headers[f"x-ratelimit-limit-{name}"] = str(limit)
            headers[f"x-ratelimit-remaining-{name}"] = str(max(0, limit - taken))
            headers[f"x-ratelimit-reset-{name}"] = span(reset_s)
    return headers


def span(seconds: float) -> str:
    """Seconds as OpenAI writes them: `120ms`, `7.5s`, `1m0s`."""
    if seconds < 1:
        return f"{max(0, math.ceil(seconds * 1000))}ms"
    minutes, rest = divmod(math.ceil(seconds * 10) / 10, 60)
    return f"{minutes:.0f}m{rest:.10g}s" if minutes else f"{rest:.10g}s"
