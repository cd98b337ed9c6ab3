"""How many replicas a version needs: by the tokens in flight and the time that requests wait. Pure.

Ray Serve's controller calls `replicas_wanted` some times a second; bounds and delays are its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.serve.engine.protocol import Load

_FULL = 0.7
"""How much of a replica's room is used before another one is wanted: the next takes seconds to start."""
_ROOM = 0.5
"""Of the cache: tokens in flight fill it while they are made, half of it on average."""
_LONG_WAIT_S = 0.5
"""A request that has waited for so long in an engine wants one replica more, whatever the numbers say."""


@dataclass(frozen=True, kw_only=True)
class Busy:
    """How busy one replica is."""

    tokens: float
    """In flight, as a share of what it has room for."""
    requests: float
    """As a share of those that it works on at once."""
    wait_s: float
    """Of the one that has waited longest."""


def stats_of(load: Load, *, slots: int) -> dict[str, float]:
    """What a replica reports to Ray Serve's controller."""
    return {
        "tokens": load.tokens_in_flight / max(1.0, _ROOM * load.cache_limit_tokens),
        "requests": (load.running + load.waiting) / slots,
        "wait_s": load.oldest_wait_s,
    }


def replicas_for(replicas: Sequence[Busy], *, queued: float) -> int:
    """The number of replicas; `queued` requests wait for any, as a share of what one works on at once."""
    used = sum(max(busy.tokens, busy.requests) for busy in replicas) + queued
    wanted = math.ceil(used / _FULL - 1e-9)
    if any(busy.wait_s > _LONG_WAIT_S for busy in replicas):
        # One more than there are, not than were asked for: those on their way are not there to help yet.
        wanted = max(wanted, len(replicas) + 1)
    return wanted


def replicas_wanted(context: Any) -> tuple[int, dict[str, Any]]:
    """The policy, for Ray Serve's `AutoscalingContext`."""
    slots = 2.0 * context.config.target_ongoing_requests
    stats: Mapping[str, Mapping[Any, float]] = context.aggregated_metrics or {}
    known = [r for r in context.running_replicas if all(r in stats.get(name, {}) for name in _STATS)]
    if not known:  # none runs yet, or they are networks of the user's own, which report nothing
        return math.ceil(context.total_num_requests / slots / _FULL - 1e-9), {}
    busy = [Busy(**{name: stats[name][replica] for name in _STATS}) for replica in known]
    return replicas_for(busy, queued=context.total_queued_requests / slots), {}


_STATS = ("tokens", "requests", "wait_s")
