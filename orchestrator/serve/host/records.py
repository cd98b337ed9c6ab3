"""What runs detached on this machine: a record for each service, alive while its supervisor holds a lock.

They are PORT.json, PORT.lock and PORT.log in `${XDG_STATE_HOME:-~/.local/state}/slipway/services`; beside them stand
PORT.sock, which takes commands, and PORT.history.jsonl.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from orchestrator.errors import ServeError
from orchestrator.serve.host.processes import HOST, marked
from orchestrator.store import write_json

_LOCK_WAIT_S = 1.0
"""Longer than anybody probes a lock."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One detached service."""

    port: int
    pid: int
    """Of the supervisor."""
    mark: str
    """Found in the environment of all its processes."""
    url: str
    model: str
    export: str
    started_at: float
    """Seconds since 1970."""
    state: Literal["starting", "ready"]
    host: str = HOST
    """The address that it listens on."""

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def folder() -> Path:
    """Where the records lie; made for the owner alone if it is not there."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    path = Path(base) / "slipway" / "services"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)
    return path


def log_path(port: int) -> Path:
    """What a service's supervisor has printed."""
    return folder() / f"{port}.log"


def history_path(port: int) -> Path:
    """What became of the versions that were served on a port; stays when the service ends."""
    return folder() / f"{port}.history.jsonl"


def write(record: Record) -> None:
    """Store a record, replacing the port's last one. Only for the holder of the port's lock."""
    write_json(folder() / f"{record.port}.json", record.as_json())


def remove(port: int) -> None:
    """Forget a service; its log stays until the next one on this port."""
    (folder() / f"{port}.json").unlink(missing_ok=True)


@contextlib.contextmanager
def hold(port: int) -> Iterator[None]:
    """Be the supervisor of this port. The kernel releases the lock when this process ends, however it does.

    Raises:
        ServeError: another supervisor has it.
    """
    with (folder() / f"{port}.lock").open("a") as file:
        deadline = time.monotonic() + _LOCK_WAIT_S
        while not _try_lock(file.fileno(), fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise ServeError(
                    f"another supervisor serves on port {port}",
                    fix=f"`slipway serve --stop --port {port}` ends it",
                )
            time.sleep(0.05)
        yield


def is_held(port: int) -> bool:
    """Whether a supervisor of this port lives."""
    path = folder() / f"{port}.lock"
    if not path.exists():
        return False
    with path.open("a") as file:
        return not _try_lock(file.fileno(), fcntl.LOCK_SH)


def commanded() -> list[int]:
    """Ports of services that have a socket for commands; one that was killed may have left it."""
    return sorted(int(path.stem) for path in folder().glob("*.sock") if path.stem.isdigit())


def living() -> list[Record]:
    """The services that have a process left, by port; records of dead ones are removed."""
    found = []
    for path in sorted(folder().glob("*.json"), key=lambda p: (len(p.name), p.name)):
        record = _read(path)
        if record is None:
            continue
        if is_held(record.port) or marked(record.mark):
            found.append(record)
        else:
            remove_dead(record.port)
    return found


def remove_dead(port: int) -> None:
    """Forget a service without a supervisor. Under the lock: a new one may have begun on this port."""
    with (folder() / f"{port}.lock").open("a") as file:
        if _try_lock(file.fileno(), fcntl.LOCK_EX):
            remove(port)


def _read(path: Path) -> Record | None:
    try:
        return Record(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:  # its supervisor ended this very moment
        return None
    except (OSError, ValueError, TypeError) as error:
        raise ServeError(f"{path} is not a service's record: {error}", fix=f"delete {path}") from None


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
