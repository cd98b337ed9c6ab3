"""One database behind all accounts: a SQLite file, or PostgreSQL by URL, through the same statements.

SQL of ours stays in what both read alike, so that this is thinner and several times faster than a toolkit: admission
stands in the way of every request.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

from orchestrator.serve.accounts import schema
from orchestrator.serve.accounts.dialects import AccountsError, Dialect, Postgres, Sqlite

Row = tuple[Any, ...]
_POSTGRES = re.compile(r"postgres(ql)?://")


class Session:
    """Statements on one connection; `?` stands for a value."""

    def __init__(self, dialect: Dialect, connection: Any, clock: Callable[[], float] | None) -> None:
        self._dialect = dialect
        self._connection = connection
        self._clock = clock
        self.for_update = dialect.for_update

    def begin(self) -> None:
        """Begin a transaction; COMMIT or ROLLBACK ends it."""
        self._dialect.begin(self._connection)

    def run(self, sql: str, *values: Any) -> int:
        """Execute; how many rows it touched."""
        return int(self._connection.execute(self._dialect.translate(sql), values).rowcount)

    def rows(self, sql: str, *values: Any) -> list[Row]:
        """All rows of a result."""
        return list(self._connection.execute(self._dialect.translate(sql), values).fetchall())

    def row(self, sql: str, *values: Any) -> Row | None:
        """The first row of a result."""
        found: Row | None = self._connection.execute(self._dialect.translate(sql), values).fetchone()
        return found

    def now(self) -> float:
        """Seconds since 1970. Ask after the row that is decided on is locked: then moments are in its order."""
        return self._clock() if self._clock else self._dialect.now(self._connection)

    def close(self) -> None:
        """Let go of the connection."""
        self._connection.close()


class _Own(threading.local):
    session: Session | None = None


class Database:
    """The accounts at one place; each thread that uses it has its own connection.

    Args:
        url: a file's path, `sqlite:///PATH`, or `postgresql://USER:PASSWORD@HOST/NAME`.
        durable: what a SQLite file is told outlives a power cut too, at the price of a flush; else only the end of
            the process. PostgreSQL decides for itself.
        clock: instead of the real one, for tests.
    """

    def __init__(self, url: str, *, durable: bool = False, clock: Callable[[], float] | None = None) -> None:
        self._dialect: Dialect = Postgres(url) if _POSTGRES.match(url) else Sqlite(url)
        self._durable = durable
        self._clock = clock
        self._own = _Own()
        self._sessions: list[Session] = []
        self._lock = threading.Lock()
        self._ready = False

    @property
    def threads(self) -> int:
        """How many threads may use it at once with profit."""
        return self._dialect.threads

    @property
    def shown(self) -> str:
        """The place, without a password."""
        return self._dialect.shown

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Session]:
        """All of it or nothing, as if alone: SQLite has one writer, PostgreSQL locks the rows that are asked for.

        Raises:
            AccountsError: the database cannot be reached, or fails.
        """
        with self._errors():
            session = self._begin()
            try:
                yield session
                session.run("COMMIT")
            except BaseException:
                self._abandon(session)
                raise

    @contextlib.contextmanager
    def reading(self) -> Iterator[Session]:
        """Single SELECTs, each of which sees all that has been committed.

        Raises:
            AccountsError: the database cannot be reached, or fails.
        """
        with self._errors():
            session = self._session()
            try:
                yield session
            except self._dialect.errors:
                self._discard(session)
                raise

    def close(self) -> None:
        """Close the connections of all threads; none may be using its own."""
        with self._lock:
            for session in self._sessions:
                session.close()
            self._sessions.clear()
        self._own = _Own()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._dialect.errors as error:
            raise AccountsError(
                f"the accounts at {self.shown} cannot be used: {error}",
                fix="check the place (--accounts, SLIPWAY_ACCOUNTS), its owner, its disk, or PostgreSQL's server",
            ) from error

    def _begin(self) -> Session:
        session = self._session()
        try:
            session.begin()
        except self._dialect.errors:  # the server was restarted since: nothing has been asked of it yet
            self._discard(session)
            session = self._session()
            session.begin()
        return session

    def _session(self) -> Session:
        session = self._own.session
        if session is None:
            connection = self._dialect.connect(durable=self._durable)
            session = Session(self._dialect, connection, self._clock)
            try:
                with self._lock:
                    if not self._ready:
                        self._create(session, connection)
                    self._sessions.append(session)
            except BaseException:
                session.close()
                raise
            self._own.session = session
        return session

    def _create(self, session: Session, connection: Any) -> None:
        with self._dialect.creating(connection):
            for statement in schema.TABLES:
                session.run(statement)
            found = session.row("SELECT format FROM slipway_format")
            if found is None:
                session.run("INSERT INTO slipway_format (format) VALUES (?)", schema.FORMAT)
            elif found[0] != schema.FORMAT:
                raise AccountsError(
                    f"the accounts at {self.shown} have format {found[0]}; this version reads format {schema.FORMAT}",
                    fix="use the version of Slipway that made them, or another place",
                )
        self._ready = True

    def _abandon(self, session: Session) -> None:
        try:
            session.run("ROLLBACK")
        except self._dialect.errors:
            self._discard(session)

    def _discard(self, session: Session) -> None:
        """Forget a connection that failed; the next use makes another."""
        with self._lock, contextlib.suppress(ValueError, self._dialect.errors):
            self._sessions.remove(session)
            session.close()
        self._own.session = None
