"""Whether a version that is tried out goes on, takes over or goes: a canary, which answers some of the requests, or one
in the shadow, which gets copies of some. By what was seen of it and of the version beside it. Pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from orchestrator.serve.deployment.observe import Seen

Verdict = Literal["wait", "promote", "roll back"]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How much worse than the current version a new one may be."""

    more_errors: float = 0.02
    """Share of requests that may fail beyond the current version's own."""
    more_refused: float = 0.1
    """Share of requests that it may have no room for, beyond the current version's own."""
    slower: float = 1.5
    """Times the current version's median, of the first token and of each that follows."""
    first_token_slack_s: float = 0.1
    token_slack_s: float = 0.02
    """Differences below these are noise."""
    enough: int = 20
    """Requests of either version before their times are compared."""
    silence_s: float = 15.0
    """A request without a first token for so long, and for four times the current version's oldest wait, is stuck."""


@dataclass(frozen=True, kw_only=True)
class Thumbs:
    """How people rated the answers of one version."""

    up: int = 0
    down: int = 0

    @property
    def count(self) -> int:
        """All of them."""
        return self.up + self.down


UNRATED = Thumbs()


@dataclass(frozen=True)
class Decision:
    """What to do, and why, for people."""

    verdict: Verdict
    reason: str


_SURE = 2.0
"""Standard deviations: how sure a share of errors or of thumbs must be before a version is sent away for it."""


def decide(
    new: Seen,
    old: Seen,
    *,
    elapsed_s: float,
    for_s: float,
    new_rated: Thumbs = UNRATED,
    old_rated: Thumbs = UNRATED,
    rules: Rules = Rules(),
) -> Decision:
    """Judge a version after `elapsed_s` of `for_s`: sent away as soon as it is surely worse, promoted at the end."""
    worse = _errors(new, old, rules) or _refused(new, old, rules) or _silence(new, old, rules)
    worse = worse or _rated(new_rated, old_rated)
    if worse is None and min(new.requests, old.requests) >= rules.enough:
        worse = _slow("the first token", new.first_token_s, old.first_token_s, rules.first_token_slack_s, rules)
        worse = worse or _slow("a token", new.token_s, old.token_s, rules.token_slack_s, rules)
    if worse is not None:
        return Decision("roll back", worse)
    more = f", it had no room for {new.refused} more" if new.refused else ""
    more += f", {new_rated.up} of {new_rated.count} rated up" if new_rated.count else ""
    if elapsed_s < for_s:
        return Decision("wait", f"{new.requests} requests, {new.errors} failed{more}")
    if new.requests == 0:
        return Decision("promote", f"no request came in {for_s:g} s; it has proven itself")
    return Decision("promote", f"{new.requests} requests in {for_s:g} s, {new.errors} failed{more}")


def _errors(new: Seen, old: Seen, rules: Rules) -> str | None:
    """Two failures at least, and a rate that is surely above the allowed one."""
    allowed = (old.errors / old.requests if old.requests else 0.0) + rules.more_errors
    if new.errors < 2 or least_rate(new.errors, new.requests) <= allowed:
        return None
    return f"{new.errors} of {new.requests} requests failed, against {old.errors} of {old.requests} before"


def _refused(new: Seen, old: Seen, rules: Rules) -> str | None:
    """As failures: two at least, and a share that is surely above the allowed one."""
    came, came_before = new.requests + new.refused, old.requests + old.refused
    allowed = (old.refused / came_before if came_before else 0.0) + rules.more_refused
    if new.refused < 2 or least_rate(new.refused, came) <= allowed:
        return None
    return f"it had no room for {new.refused} of {came} requests, against {old.refused} of {came_before} before"


def _rated(new: Thumbs, old: Thumbs) -> str | None:
    """Both shares are guesses, and neither is near 0 by nature: so the bounds of both must be apart.

    With no thumb for the current version there is nothing that the new one could be worse than.
    """
    if new.count == 0 or old.count == 0:
        return None
    if least_rate(new.down, new.count) <= 1.0 - least_rate(old.up, old.count):
        return None
    return f"{new.up} of {new.count} answers were rated up, against {old.up} of {old.count} before"


def least_rate(found: int, count: int) -> float:
    """The lowest share that would not surprise after so many of `count`: Wilson's bound (JASA 22, 1927)."""
    rate, square = found / count, _SURE**2
    middle = rate + square / (2 * count)
    spread = _SURE * math.sqrt(rate * (1.0 - rate) / count + square / (4 * count**2))
    return max(0.0, (middle - spread) / (1.0 + square / count))


def _silence(new: Seen, old: Seen, rules: Rules) -> str | None:
    if new.silent_s <= max(rules.silence_s, 4.0 * old.silent_s):
        return None
    return f"a request has waited {new.silent_s:.1f} s for its first token"


def _slow(what: str, new_s: float | None, old_s: float | None, slack_s: float, rules: Rules) -> str | None:
    if new_s is None or old_s is None or new_s <= old_s * rules.slower + slack_s:
        return None
    return f"{what} takes {new_s * 1e3:.0f} ms at the median, against {old_s * 1e3:.0f} ms before"
