"""Where SQLite and PostgreSQL differ: how to connect, begin, lock, and ask the time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from orchestrator.errors import ServeError

_BUSY_S = 20.0
"""How long a transaction waits for others before it is an error."""
_PAUSES_S = 0.1
"""SQLite waits longer each time that it finds the file locked; after this much it begins anew with a millisecond, or
one of several busy processes could starve."""


class AccountsError(ServeError):
    """The accounts cannot be read or written: who asks is not known, so nobody is let in."""


class Dialect(Protocol):
    """Where SQLite and PostgreSQL differ."""

    errors: type[Exception]
    """What the driver raises."""
    for_update: str
    """Ends a SELECT whose row stays locked until the transaction ends."""
    shown: str
    """The place, without a password."""
    threads: int
    """How many connections pay."""

    def connect(self, *, durable: bool) -> Any:
        """A DB-API connection without transactions of its own."""
        ...

    def begin(self, connection: Any) -> None:
        """Begin a transaction that sees what all before it have written."""
        ...

    def translate(self, sql: str) -> str:
        """SQL with this driver's mark for a value."""
        ...

    def now(self, connection: Any) -> float:
        """The moment, by one clock for all processes."""
        ...

    def creating(self, connection: Any) -> contextlib.AbstractContextManager[None]:
        """Alone among all processes, to create tables."""
        ...


class Sqlite:
    """A file: mode 0600, in a folder that is made for its owner alone."""

    errors: type[Exception] = sqlite3.Error
    for_update = ""
    threads = 1

    def __init__(self, url: str) -> None:
        self._path = Path(url.removeprefix("sqlite:///")).absolute()
        self.shown = str(self._path)

    def connect(self, *, durable: bool) -> sqlite3.Connection:
        self._make()
        connection = sqlite3.connect(
            self._path, timeout=_PAUSES_S, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        connection.execute("PRAGMA schema_version")  # it is a database: the mode of any other file is none of ours
        if self._path.stat().st_mode & 0o077:
            self._path.chmod(0o600)
        connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        return connection

    def _make(self) -> None:
        # An existing file is never opened here: closing it would drop the locks that SQLite has on it in this process.
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except OSError as error:
            raise AccountsError(
                f"no accounts can be kept at {self._path}: {error.strerror or error}",
                fix="give another place with --accounts or SLIPWAY_ACCOUNTS, or mend the folder's owner and mode",
            ) from None

    def begin(self, connection: sqlite3.Connection) -> None:
        deadline = time.monotonic() + _BUSY_S
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise

    def translate(self, sql: str) -> str:
        return sql

    def now(self, connection: sqlite3.Connection) -> float:
        return time.time()

    @contextlib.contextmanager
    def creating(self, connection: sqlite3.Connection) -> Iterator[None]:
        # The change to a write-ahead log takes a lock that waits for nobody, so two processes must not try at once.
        lock = self._path.with_name(f"{self._path.name}.lock")
        with os.fdopen(os.open(lock, os.O_CREAT | os.O_RDWR, 0o600)) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            connection.execute("PRAGMA journal_mode = WAL")
            self.begin(connection)
            with connection:
                yield


class Postgres:
    """A server, by URL."""

    for_update = " FOR UPDATE"
    threads = 8

    def __init__(self, url: str) -> None:
        try:
            import psycopg
        except ImportError:
            raise AccountsError(
                "accounts in PostgreSQL need psycopg, which is not installed", fix="pip install 'slipway[postgresql]'"
            ) from None
        self._url = url
        self._connect = psycopg.connect
        self.errors: type[Exception] = psycopg.Error
        self.shown = re.sub(r"//[^@/]*@", "//", url).partition("?")[0]

    def connect(self, *, durable: bool) -> Any:
        timeout = f"-c statement_timeout={_BUSY_S:.0f}s"
        return self._connect(self._url, autocommit=True, connect_timeout=5, options=timeout)

    def begin(self, connection: Any) -> None:
        connection.execute("BEGIN")

    def translate(self, sql: str) -> str:
        return _with_percent(sql)

    def now(self, connection: Any) -> float:
        return float(connection.execute("SELECT EXTRACT(EPOCH FROM clock_timestamp())::float8").fetchone()[0])

    @contextlib.contextmanager
    def creating(self, connection: Any) -> Iterator[None]:
        with connection.transaction():
            # Of two that create the same table at once, PostgreSQL fails one in spite of IF NOT EXISTS.
            connection.execute("SELECT pg_advisory_xact_lock(7238116291)")
            yield


@cache
def _with_percent(sql: str) -> str:
    return sql.replace("?", "%s")
