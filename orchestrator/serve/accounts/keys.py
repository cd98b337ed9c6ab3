"""Keys: what each may do, how one is made, found and revoked. A key itself is nowhere kept, only its SHA-256.

That is enough: a key has 256 random bits, so there is nothing to guess that a slow hash would protect.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any, Literal, get_args

from orchestrator.errors import JobError
from orchestrator.serve.accounts.database import Row, Session
from orchestrator.serve.api.front import Scope

SCOPES: tuple[Scope, ...] = get_args(Scope)
NANO = 1_000_000_000
"""Money is kept in billionths of the price list's unit."""
_PREFIX = "sk-"
_COLUMNS = "id, name, scopes, models, created_at, expires_at, revoked_at, rpm, tpm, budget_nano, spent_nano"


@dataclass(frozen=True, kw_only=True)
class NewKey:
    """What a key is to be good for. None: no limit."""

    name: str
    scopes: frozenset[Scope] = frozenset({"generate", "embed"})
    models: frozenset[str] | None = None
    rpm: int | None = None
    """Requests in any 60 seconds."""
    tpm: int | None = None
    """Tokens read and made in any 60 seconds."""
    budget_nano: int | None = None
    expires_at: float | None = None
    """Seconds since 1970."""


@dataclass(frozen=True, kw_only=True)
class Key(NewKey):
    """A key as it is kept."""

    id: str
    created_at: float
    revoked_at: float | None
    spent_nano: int

    def as_json(self) -> dict[str, Any]:
        """Plain data for people and programs: moments as UTC text, money in units."""
        return {
            "id": self.id,
            "name": self.name,
            "scopes": sorted(self.scopes),
            "models": None if self.models is None else sorted(self.models),
            "rpm": self.rpm,
            "tpm": self.tpm,
            "budget": None if self.budget_nano is None else self.budget_nano / NANO,
            "spent": self.spent_nano / NANO,
            "created": utc(self.created_at),
            "expires": utc(self.expires_at),
            "revoked": utc(self.revoked_at),
        }


Limit = Literal["models", "rpm", "tpm", "budget", "expires"]
"""What a key may be without."""
_FIELD: dict[Limit, str] = {"budget": "budget_nano", "expires": "expires_at"}
"""Limits that are kept under another name."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """What is to be different about a key. None: it stays as it is."""

    scopes: frozenset[Scope] | None = None
    models: frozenset[str] | None = None
    rpm: int | None = None
    tpm: int | None = None
    budget_nano: int | None = None
    expires_at: float | None = None
    lifted: frozenset[Limit] = frozenset()
    """Limits that the key has no more."""

    def of(self, key: Key) -> Key:
        """The key after it.

        Raises:
            JobError: it says nothing, or twice of one limit.
        """
        given = {name: value for name, value in vars(self).items() if name != "lifted" and value is not None}
        if unknown := sorted(self.lifted - set(get_args(Limit))):
            raise JobError(f"a key has no limit {unknown[0]!r}", fix=f"the limits are {', '.join(get_args(Limit))}")
        if twice := [name for name in sorted(self.lifted) if _FIELD.get(name, name) in given]:
            raise JobError(f"{twice[0]} is to be lifted, and is given too", fix=f"leave one of both {twice[0]} out")
        if not given and not self.lifted:
            raise JobError(f"nothing was said to change of {key.id}", fix="give a limit, such as --rpm 60")
        nothing: dict[str, Any] = {_FIELD.get(name, name): None for name in self.lifted}
        return replace(key, **given, **nothing)


def utc(moment: float | None) -> str | None:
    """A moment as ISO 8601, whole seconds."""
    return None if moment is None else datetime.fromtimestamp(moment, timezone.utc).isoformat(timespec="seconds")


def hash_of(secret: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(secret.encode()).hexdigest()


def create(session: Session, new: NewKey) -> tuple[Key, str]:
    """Make a key; the text beside it is the key itself, which nothing can tell again.

    Raises:
        JobError: a name, scope or limit that cannot be.
    """
    _check(new)
    secret = _PREFIX + secrets.token_urlsafe(32)
    key = Key(**vars(new), id=f"key-{secrets.token_hex(6)}", created_at=session.now(), revoked_at=None, spent_nano=0)
    session.run(
        "INSERT INTO slipway_keys (id, hash, name, scopes, models, created_at, expires_at, rpm, tpm, budget_nano)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        *(key.id, hash_of(secret), key.name, _packed(key.scopes), _packed(key.models), key.created_at, key.expires_at),
        *(key.rpm, key.tpm, key.budget_nano),
    )
    return key, secret


def _check(new: NewKey) -> None:
    if not new.name.strip():
        raise JobError("a key needs a name", fix="give --name, such as the name of who will use it")
    if unknown := sorted(set(new.scopes) - set(SCOPES)):
        raise JobError(f"there is no scope {unknown[0]!r}", fix=f"the scopes are {', '.join(SCOPES)}")
    if not new.scopes:
        raise JobError(f"the key {new.name!r} has no scope", fix=f"give some of {', '.join(SCOPES)}")
    for what, limit in (("rpm", new.rpm), ("tpm", new.tpm), ("budget", new.budget_nano)):
        if limit is not None and limit < 1:
            raise JobError(f"{what} of the key {new.name!r} is too small", fix=f"leave {what} out for no limit")


def every(session: Session) -> list[Key]:
    """All keys that ever were, oldest first."""
    return [read(row) for row in session.rows(f"SELECT {_COLUMNS} FROM slipway_keys ORDER BY created_at, id")]


def any_at_all(session: Session) -> bool:
    """Whether a key was ever made: from then on nobody comes in without one."""
    return session.row("SELECT 1 FROM slipway_keys LIMIT 1") is not None


def of_secret(session: Session, secret: str) -> Key | None:
    """The key that this text is. Found by its hash: how long that takes tells nothing of any key."""
    row = session.row(f"SELECT {_COLUMNS} FROM slipway_keys WHERE hash = ?", hash_of(secret))
    return None if row is None else read(row)


def revoke(session: Session, key_id: str) -> Key:
    """End a key, from the next request on. One that is revoked stays as it was.

    Raises:
        JobError: there is no such key.
    """
    now = session.now()
    session.run("UPDATE slipway_keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", now, key_id)
    row = session.row(f"SELECT {_COLUMNS} FROM slipway_keys WHERE id = ?", key_id)
    if row is None:
        raise unknown_key(session, key_id)
    return read(row)


def change(session: Session, key_id: str, wanted: Change) -> tuple[Key, Key]:
    """Give a key other limits, from the next request on; returns it as it was and as it is.

    What it has used stays used. A limit on requests or tokens where there was none begins with an empty window.

    Raises:
        JobError: there is no such key, it is revoked, or what is wanted cannot be.
    """
    row = session.row(f"SELECT {_COLUMNS} FROM slipway_keys WHERE id = ?{session.for_update}", key_id)
    if row is None:
        raise unknown_key(session, key_id)
    before = read(row)
    if before.revoked_at is not None:
        raise JobError(f"{key_id} ({before.name}) is revoked, for good", fix="`slipway keys create` makes another")
    after = wanted.of(before)
    _check(after)
    session.run(
        "UPDATE slipway_keys SET scopes = ?, models = ?, expires_at = ?, rpm = ?, tpm = ?, budget_nano = ?"
        " WHERE id = ?",
        *(_packed(after.scopes), _packed(after.models), after.expires_at, after.rpm, after.tpm, after.budget_nano),
        key_id,
    )
    return before, after


def unknown_key(session: Session, key_id: str) -> JobError:
    """There is no such key: which there are."""
    there = ", ".join(f"{key.id} ({key.name})" for key in every(session)[-20:]) or "none"
    return JobError(f"there is no key {key_id!r}; there are: {there}", fix="`slipway keys list` shows all")


def read(row: Row) -> Key:
    """A key from its columns, in the order of `_COLUMNS`."""
    key_id, name, scopes, models, created_at, expires_at, revoked_at, rpm, tpm, budget_nano, spent_nano = row
    return Key(
        id=key_id,
        name=name,
        scopes=frozenset(json.loads(scopes)),
        models=None if models is None else frozenset(json.loads(models)),
        created_at=created_at,
        expires_at=expires_at,
        revoked_at=revoked_at,
        rpm=rpm,
        tpm=tpm,
        budget_nano=budget_nano,
        spent_nano=spent_nano,
    )


def _packed(names: Collection[str] | None) -> str | None:
    return None if names is None else json.dumps(sorted(names))
