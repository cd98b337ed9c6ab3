"""Admissions and usage: each function is one transaction, so limits and sums are exact across processes.

Whoever admits locks the row of the key first and asks the time after that. An admission that nobody settles (its
process was killed) is closed by its age, with its prompt as what was used: what it made is not known.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Literal

from orchestrator.serve.accounts import keys, limits
from orchestrator.serve.accounts.database import Database, Session
from orchestrator.serve.accounts.keys import Key
from orchestrator.serve.accounts.limits import WINDOW_S, Lack, Limits, Need, Standing
from orchestrator.serve.accounts.prices import Prices, cost_nano
from orchestrator.serve.api.front import Scope

ABANDONED_S = 3600.0
"""Longer than any request may take."""
_KEY = (
    "SELECT id, name, scopes, models, created_at, expires_at, revoked_at, rpm, tpm, budget_nano, spent_nano,"
    " window_requests, window_tokens, reserved_nano FROM slipway_keys WHERE id = ?"
)
_CHUNK = 256
Barred = Literal["revoked", "expired", "scope", "model", "price"]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request before it is worked on."""

    key_id: str | None
    scope: Scope
    model: str
    version: str
    prompt_tokens: int
    max_tokens: int
    """At most made."""

    @property
    def tokens(self) -> int:
        """What counts against the limit until it is settled."""
        return self.prompt_tokens + self.max_tokens


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """A request under way."""

    id: int
    key_id: str | None
    model: str
    version: str
    tokens: int
    prompt_tokens: int
    reserved_nano: int
    headers: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Denied:
    """A request that may not be worked on: a bar that no waiting lifts, or what is short of a limit."""

    key: Key
    why: Barred | Lack
    wait_s: float = 0.0
    headers: dict[str, str]


def admit(session: Session, asked: Asked, prices: Prices) -> Admitted | Denied:
    """Let a request in or not, counting it against the limits of its key."""
    if asked.key_id is None:
        return _enter(session, asked, reserved_nano=0, is_counted=False, now=session.now(), headers={})
    row = session.row(_KEY + session.for_update, asked.key_id)
    if row is None:
        raise RuntimeError(f"the key {asked.key_id} has gone, and keys are never removed")
    now = session.now()
    key, (requests, tokens, reserved_nano) = keys.read(row[:11]), row[11:]
    cost = cost_nano(prices, asked.model, prompt_tokens=asked.prompt_tokens, completion_tokens=asked.max_tokens)
    if (bar := _barred(key, asked, now, cost)) is not None:
        return Denied(key=key, why=bar, headers={})
    bounds = Limits(rpm=key.rpm, tpm=key.tpm, budget_nano=key.budget_nano)
    windowed = key.rpm is not None or key.tpm is not None
    if windowed:
        requests, tokens = _slide(session, key.id, now, requests, tokens)
    standing = Standing(requests=requests, tokens=tokens, spent_nano=key.spent_nano, reserved_nano=reserved_nano)
    need = Need(tokens=asked.tokens, cost_nano=0 if key.budget_nano is None else cost or 0)
    if (short := limits.lack(bounds, standing, need)) is not None:
        return _denied(session, key, short, bounds, standing, now)
    if windowed or key.budget_nano is not None:
        session.run(
            "UPDATE slipway_keys SET window_requests = ?, window_tokens = ?, reserved_nano = ? WHERE id = ?",
            *(requests + windowed, tokens + asked.tokens * windowed, reserved_nano + need.cost_nano, key.id),
        )
    after = Standing(requests=requests + 1, tokens=tokens + asked.tokens, spent_nano=0, reserved_nano=0)
    headers = limits.limit_headers(bounds, after, reset_s=WINDOW_S)
    return _enter(session, asked, reserved_nano=need.cost_nano, is_counted=windowed, now=now, headers=headers)


def _barred(key: Key, asked: Asked, now: float, cost: int | None) -> Barred | None:
    """What no waiting lifts."""
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is not None and key.expires_at <= now:
        return "expired"
    if asked.scope not in key.scopes:
        return "scope"
    if key.models is not None and asked.model not in key.models:
        return "model"
    return "price" if key.budget_nano is not None and cost is None else None


def _slide(session: Session, key_id: str, now: float, requests: int, tokens: int) -> tuple[int, int]:
    """Requests and tokens in the window after what is too old has left it."""
    # A moment far ahead is of a clock that was set back since: it would hold the limit shut until it comes again.
    left = session.rows(
        "UPDATE slipway_admissions SET is_counted = 0"
        " WHERE key_id = ? AND is_counted = 1 AND (at <= ? OR at > ?) RETURNING tokens",
        *(key_id, now - WINDOW_S, now + WINDOW_S),
    )
    if not left:
        return requests, tokens
    session.run("DELETE FROM slipway_admissions WHERE key_id = ? AND is_counted = 0 AND is_open = 0", key_id)
    requests, tokens = requests - len(left), tokens - sum(size for (size,) in left)
    session.run("UPDATE slipway_keys SET window_requests = ?, window_tokens = ? WHERE id = ?", requests, tokens, key_id)
    return requests, tokens


def _denied(session: Session, key: Key, short: Lack, bounds: Limits, standing: Standing, now: float) -> Denied:
    newest = session.row("SELECT MAX(at) FROM slipway_admissions WHERE key_id = ? AND is_counted = 1", key.id)
    reset_s = max(0.0, newest[0] + WINDOW_S - now) if newest and newest[0] is not None else 0.0
    return Denied(
        key=key,
        why=short,
        wait_s=limits.wait_s(short, _counted(session, key.id), now=now),
        headers=limits.limit_headers(bounds, standing, reset_s=reset_s),
    )


def _counted(session: Session, key_id: str) -> Iterator[tuple[float, int]]:
    """Moment and tokens of what is in the window, oldest first, read piece by piece."""
    at, last = float("-inf"), -1
    while rows := session.rows(
        "SELECT at, id, tokens FROM slipway_admissions WHERE key_id = ? AND is_counted = 1 AND (at, id) > (?, ?)"
        f" ORDER BY at, id LIMIT {_CHUNK}",
        *(key_id, at, last),
    ):
        yield from ((moment, size) for moment, _, size in rows)
        at, last, _ = rows[-1]


def _enter(
    session: Session, asked: Asked, *, reserved_nano: int, is_counted: bool, now: float, headers: dict[str, str]
) -> Admitted:
    admitted = Admitted(
        id=secrets.randbits(63),
        key_id=asked.key_id,
        model=asked.model,
        version=asked.version,
        tokens=asked.tokens,
        prompt_tokens=asked.prompt_tokens,
        reserved_nano=reserved_nano,
        headers=headers,
    )
    session.run(
        "INSERT INTO slipway_admissions"
        " (id, key_id, at, model, version, tokens, prompt_tokens, reserved_nano, is_open, is_counted)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1, ?)",
        *(admitted.id, admitted.key_id or "", now, admitted.model, admitted.version, admitted.tokens),
        *(admitted.prompt_tokens, admitted.reserved_nano, int(is_counted)),
    )
    return admitted


def settle(
    session: Session, admitted: Admitted, prices: Prices, *, prompt_tokens: int, completion_tokens: int, failed: bool
) -> None:
    """Count what a request used; once for each. Also right when it was closed by its age before."""
    was_open = _close(session, admitted, tokens=prompt_tokens + completion_tokens)
    cost = cost_nano(prices, admitted.model, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
    if was_open:
        _count(session, admitted, _Used(1, int(failed), prompt_tokens, completion_tokens, cost))
        return
    already = cost_nano(prices, admitted.model, prompt_tokens=admitted.prompt_tokens, completion_tokens=0)
    more = None if cost is None or already is None else cost - already
    late = _Used(0, int(failed) - 1, prompt_tokens - admitted.prompt_tokens, completion_tokens, more)
    _count(session, admitted, late)


def close_abandoned(database: Database, prices: Prices) -> int:
    """Close what nobody settled within `ABANDONED_S`: its prompt counts, and that it failed. How many there were."""
    with database.reading() as session:
        found = session.rows(
            "SELECT id, key_id, model, version, tokens, prompt_tokens, reserved_nano FROM slipway_admissions"
            " WHERE is_open = 1 AND at <= ?",
            session.now() - ABANDONED_S,
        )
    closed = 0
    for number, key_id, model, version, tokens, prompt_tokens, reserved_nano in found:
        admitted = Admitted(
            id=number,
            key_id=key_id or None,
            model=model,
            version=version,
            tokens=tokens,
            prompt_tokens=prompt_tokens,
            reserved_nano=reserved_nano,
            headers={},
        )
        with database.transaction() as session:
            if _close(session, admitted, tokens=prompt_tokens):
                cost = cost_nano(prices, model, prompt_tokens=prompt_tokens, completion_tokens=0)
                _count(session, admitted, _Used(1, 1, prompt_tokens, 0, cost))
                closed += 1
    return closed


def _close(session: Session, admitted: Admitted, *, tokens: int) -> bool:
    """End a request with the tokens that it took; False: it was closed before."""
    if admitted.key_id is not None and session.for_update:
        # As in `admit`: the key's row first, or two transactions could wait for each other.
        session.row(f"SELECT 1 FROM slipway_keys WHERE id = ?{session.for_update}", admitted.key_id)
    row = session.row(
        "UPDATE slipway_admissions SET is_open = 0, tokens = ? WHERE id = ? AND is_open = 1 RETURNING is_counted",
        *(tokens, admitted.id),
    )
    if row is None:
        return False
    if row[0]:
        change = tokens - admitted.tokens
        session.run("UPDATE slipway_keys SET window_tokens = window_tokens + ? WHERE id = ?", change, admitted.key_id)
    else:
        session.run("DELETE FROM slipway_admissions WHERE id = ?", admitted.id)
    if admitted.reserved_nano:
        session.run(
            "UPDATE slipway_keys SET reserved_nano = reserved_nano - ? WHERE id = ?",
            *(admitted.reserved_nano, admitted.key_id),
        )
    return True


@dataclass(frozen=True)
class _Used:
    """What is added to the usage of a key, model, version and day; negative where it was counted too high."""

    requests: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    cost_nano: int | None


def _count(session: Session, admitted: Admitted, used: _Used) -> None:
    day = datetime.fromtimestamp(session.now(), timezone.utc).date().isoformat()
    session.run(
        "INSERT INTO slipway_usage"
        " (key_id, model, version, day, requests, failed, prompt_tokens, completion_tokens, cost_nano)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key_id, model, version, day) DO UPDATE SET"
        " requests = slipway_usage.requests + excluded.requests, failed = slipway_usage.failed + excluded.failed,"
        " prompt_tokens = slipway_usage.prompt_tokens + excluded.prompt_tokens,"
        " completion_tokens = slipway_usage.completion_tokens + excluded.completion_tokens, cost_nano ="
        " COALESCE(slipway_usage.cost_nano + excluded.cost_nano, slipway_usage.cost_nano, excluded.cost_nano)",
        *(admitted.key_id or "", admitted.model, admitted.version, day),
        *(used.requests, used.failed, used.prompt_tokens, used.completion_tokens, used.cost_nano),
    )
    if admitted.key_id is not None and used.cost_nano:
        session.run("UPDATE slipway_keys SET spent_nano = spent_nano + ? WHERE id = ?", used.cost_nano, admitted.key_id)
