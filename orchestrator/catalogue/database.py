"""The file: its tables, and reading and writing them. Whatever is wrong with it, the folders have it all.

SQLite with a rollback journal, because its other one needs memory that machines share. Transactions are short.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from orchestrator.catalogue.tables import FORMAT, TABLES, Facts, Row
from orchestrator.errors import StoreError
from orchestrator.store import Store, lock

FILE = "catalogue.sqlite"
_WAIT_S = 2.0


class _ForeignFileError(Exception):
    """The file is of another format."""


def read(store: Store) -> dict[str, Facts]:
    """What is remembered, by folder; nothing where the file is absent, torn, of another format, or not to be had."""
    path = store.root / FILE
    if not path.is_file():
        return {}
    try:
        with contextlib.closing(_connect(path, "ro")) as connection:
            return _read_all(connection)
    except (sqlite3.Error, _ForeignFileError, ValueError, KeyError):
        return {}


def write(store: Store, changed: Sequence[Facts], gone: Collection[str]) -> bool:
    """Remember what was read, and forget what is gone; False where that is not possible now: then later."""
    path = store.root / FILE
    held = lock(path.with_name(f".{FILE}.lock"), holds="the catalogue", wait_s=_WAIT_S)
    try:
        with held:
            _write(path, changed, gone)
    except (sqlite3.Error, OSError, StoreError):  # a disk that is full or read-only, a lock that is not to be had
        return False
    return True


def _write(path: Path, changed: Sequence[Facts], gone: Collection[str]) -> None:
    try:
        _apply(path, changed, gone)
    except (sqlite3.DatabaseError, _ForeignFileError) as error:
        if isinstance(error, sqlite3.OperationalError):
            raise
        # No catalogue, or torn: made anew. A journal of the old file would be taken for one of the new.
        for name in (f"{path.name}-journal", path.name):
            path.with_name(name).unlink(missing_ok=True)
        _apply(path, changed, gone)


def _apply(path: Path, changed: Sequence[Facts], gone: Collection[str]) -> None:
    with contextlib.closing(_connect(path, "rwc")) as connection, _transaction(connection):
        _require_format(connection, may_make=True)
        for name in (*gone, *(facts.path for facts in changed)):
            for table in ("seen", *TABLES):
                connection.execute(f"DELETE FROM {table} WHERE folder = ?", (name,))
        for facts in changed:
            _insert(connection, "seen", {"folder": facts.path, "state": facts.seen})
            for table, rows in facts.rows.items():
                for row in rows:
                    _insert(connection, table, {"folder": facts.path, **row})


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(uri, uri=True, timeout=_WAIT_S, isolation_level=None)


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _require_format(connection: sqlite3.Connection, *, may_make: bool = False) -> None:
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if found == FORMAT:
        (said,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if said != "ok":
            raise _ForeignFileError
    elif found == 0 and not tables and may_make:
        connection.execute("CREATE TABLE seen (folder TEXT PRIMARY KEY, state TEXT)")
        for table, columns in TABLES.items():
            declared = ", ".join(f"{name} {kind}" for name, kind in columns.items())
            connection.execute(f"CREATE TABLE {table} (folder TEXT, {declared})")
            connection.execute(f"CREATE INDEX {table}_folder ON {table} (folder)")
        connection.execute(f"PRAGMA user_version = {FORMAT}")
    else:
        raise _ForeignFileError


def _insert(connection: sqlite3.Connection, table: str, row: Row) -> None:
    names, marks = ", ".join(row), ", ".join("?" for _ in row)
    connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(row.values()))


def _read_all(connection: sqlite3.Connection) -> dict[str, Facts]:
    connection.execute("BEGIN")  # all tables as they were at one moment
    _require_format(connection)
    connection.row_factory = sqlite3.Row
    seen = {row["folder"]: str(row["state"]) for row in connection.execute("SELECT * FROM seen")}
    rows: dict[str, dict[str, list[Row]]] = {folder: {} for folder in seen}
    for table in TABLES:
        for row in connection.execute(f"SELECT * FROM {table} ORDER BY rowid"):
            content = dict(row)
            rows[content.pop("folder")].setdefault(table, []).append(content)
    return {folder: Facts(folder, state, rows[folder]) for folder, state in seen.items()}
