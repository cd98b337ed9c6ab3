"""Where a service listens: this machine alone, unless somebody says otherwise and has keys. No torch, no Ray."""

from __future__ import annotations

import ipaddress

from orchestrator.errors import JobError, ServeError
from orchestrator.job import Serve
from orchestrator.serve.accounts import keys
from orchestrator.serve.accounts.database import Database
from orchestrator.serve.accounts.place import accounts_url
from orchestrator.serve.host.processes import HOST


def check_host(host: str, settings: Serve) -> None:
    """Refuse an address that nobody can listen on, and one that others reach while nobody has to show a key.

    Raises:
        JobError: it is no IPv4 address.
        ServeError: others reach it, and no key was ever made.
    """
    try:
        address = ipaddress.IPv4Address(host)
    except ValueError:
        raise JobError(
            f"--host {host} is no IPv4 address", fix="such as 127.0.0.1, 0.0.0.0 for all, or one of this machine's"
        ) from None
    if not address.is_loopback:
        require_key(
            settings,
            fix=f"`slipway keys create --name NAME` makes one; or leave --host {host} out, "
            "and put a proxy with TLS in front (docs/reverse-proxy.md)",
        )


def require_key(settings: Serve, *, fix: str) -> None:
    """Refuse to listen on a network where nobody has to show a key.

    Raises:
        ServeError: none was ever made.
    """
    database = Database(accounts_url(settings.accounts))
    try:
        with database.reading() as session:
            found = keys.any_at_all(session)
    finally:
        database.close()
    if not found:
        raise ServeError(f"the accounts at {database.shown} have no key, so anybody could ask this service", fix=fix)


def asked_at(host: str) -> str:
    """The address under which this machine asks a service that listens on `host`."""
    return HOST if ipaddress.IPv4Address(host).is_unspecified else host
