"""Keys made, changed and revoked, each with its line in the audit log."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from orchestrator.serve.accounts import keys
from orchestrator.serve.accounts.audit import AuditLog
from orchestrator.serve.accounts.database import Database
from orchestrator.serve.accounts.keys import Change, Key, NewKey
from orchestrator.serve.accounts.place import accounts_url, audit_path

_OWN_FOR_S = 600.0
"""A process that is killed leaves a key that is good for no longer."""


def issue(database: Database, new: NewKey) -> tuple[Key, str]:
    """Make a key; the text beside it is the key itself.

    Raises:
        JobError: a name, scope or limit that cannot be.
        AccountsError: they cannot be written.
    """
    with database.transaction() as session:
        key, secret = keys.create(session, new)
        AuditLog(audit_path()).append("key created", key=key.id, name=key.name, scopes=sorted(key.scopes))
    return key, secret


def withdraw(database: Database, key_id: str) -> Key:
    """Revoke a key.

    Raises:
        JobError: there is no such key.
        AccountsError: they cannot be written.
    """
    with database.transaction() as session:
        key = keys.revoke(session, key_id)
        AuditLog(audit_path()).append("key revoked", key=key.id, name=key.name)
    return key


def amend(database: Database, key_id: str, wanted: Change) -> Key:
    """Give a key other limits; the log says which.

    Raises:
        JobError: there is no such key, it is revoked, or what is wanted cannot be.
        AccountsError: they cannot be written.
    """
    with database.transaction() as session:
        before, key = keys.change(session, key_id, wanted)
        was = before.as_json()
        changed = {what: value for what, value in key.as_json().items() if value != was[what]}
        AuditLog(audit_path()).append("key changed", key=key.id, name=key.name, **changed)
    return key


@contextlib.contextmanager
def own_key(url: str | None, *, name: str) -> Iterator[str | None]:
    """A key for what this process asks of a service of its own, good for as long as the block lasts.

    None where no key was ever made: the first one would close the service to everybody else.

    Raises:
        AccountsError: the accounts cannot be read or written.
    """
    database = Database(accounts_url(url), durable=True)
    try:
        with database.reading() as session:
            is_closed = keys.any_at_all(session)
        if not is_closed:
            yield None
            return
        key, secret = issue(database, NewKey(name=name, expires_at=time.time() + _OWN_FOR_S))
        try:
            yield secret
        finally:
            withdraw(database, key.id)
    finally:
        database.close()
