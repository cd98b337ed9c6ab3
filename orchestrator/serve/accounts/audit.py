"""The audit log: JSON lines, each with the SHA-256 of the one before: none can be changed or taken out unseen.

What the chain cannot show is that lines were cut off at the end: `head` is what to keep elsewhere against that.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from orchestrator.errors import DataError, storage_error

GENESIS = "0" * 64
"""What stands in the first line for the one before it."""
_BLOCK_BYTES = 1 << 16
_FLUSH_S = 1.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """What a walk through the log has found."""

    path: str
    lines: int
    torn: int
    """Lines that a power cut or a full disk left unfinished; the chain goes on over them."""
    head: str
    """SHA-256 of the last line."""
    problem: str | None
    """The first line that does not follow from the one before; None: all do."""

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


class AuditLog:
    """Appends to one file, from any number of processes.

    Denied requests are counted, and written once a second for each key and reason: a flood does not fill the disk.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._denied: Counter[tuple[str, str | None]] = Counter()
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()

    def append(self, event: str, **facts: Any) -> None:
        """Write one event, flushed to disk before this returns.

        Raises:
            StoreError: the disk is full, or the file is not ours.
        """
        try:
            self._append([{"event": event, **facts}])
        except OSError as error:
            raise storage_error(error, doing="writing the audit log") from error

    def deny(self, reason: str, key_id: str | None) -> None:
        """Count a denied request; it is in the file a second later at most."""
        with self._lock:
            self._denied[reason, key_id] += 1
            if self._timer is None:
                self._timer = threading.Timer(_FLUSH_S, self._flush_in_time)
                self._timer.daemon = True
                self._timer.start()

    def flush(self) -> None:
        """Write what was denied since the last time.

        Raises:
            OSError: the file cannot be written; what was counted is kept for the next time.
        """
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = None
            denied, self._denied = self._denied, Counter()
        if denied:
            try:
                self._append(
                    [
                        {"event": "denied", "reason": reason, "key": key_id, "requests": requests}
                        for (reason, key_id), requests in denied.items()
                    ]
                )
            except OSError:
                with self._lock:
                    self._denied.update(denied)
                raise

    def _flush_in_time(self) -> None:
        try:
            self.flush()
        except OSError as error:
            _log.error("denied requests are not yet in the audit log: %s", error)

    def _append(self, events: list[dict[str, Any]]) -> None:
        with _locked(self._path) as descriptor:
            last, ended = _last_line(descriptor)
            previous = GENESIS if last is None else _hash(last)
            lines = [] if ended else [b""]  # closes the torn line
            for event in events:
                now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
                line = json.dumps({"at": now, **event, "previous": previous}, ensure_ascii=False).encode()
                lines.append(line)
                previous = _hash(line)
            data = b"\n".join([*lines, b""])
            while data:
                data = data[os.write(descriptor, data) :]
            os.fsync(descriptor)


def read_audit(path: Path) -> Iterator[dict[str, Any]]:
    """The events, oldest first; torn lines are left out.

    Raises:
        DataError: there is no such file.
    """
    for line in _lines(path):
        event = _parsed(line)
        if event is not None:
            yield event


def verify_audit(path: Path) -> AuditReport:
    """Walk through the chain.

    Raises:
        DataError: there is no such file.
    """
    previous, torn, number, problem = GENESIS, 0, 0, None
    for number, line in enumerate(_lines(path), start=1):
        event = _parsed(line)
        if event is None:
            torn += 1
        elif event.get("previous") != previous and problem is None:
            problem = f"line {number} does not follow from the line before it: one of them was changed, or one is gone"
        previous = _hash(line)
    return AuditReport(path=str(path), lines=number, torn=torn, head=previous, problem=problem)


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            for line in file:
                yield line.removesuffix(b"\n")
    except FileNotFoundError:
        raise DataError(
            f"there is no audit log at {path}", fix="it begins with the first key: `slipway keys create --name NAME`"
        ) from None


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    """The file, for its owner alone, with all other writers waiting."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _last_line(descriptor: int) -> tuple[bytes | None, bool]:
    """The last line, None of an empty file, and whether it was ended."""
    end = os.fstat(descriptor).st_size
    if end == 0:
        return None, True
    ended = os.pread(descriptor, 1, end - 1) == b"\n"
    start, tail = end - ended, b""
    while start > 0 and b"\n" not in tail:
        size = min(_BLOCK_BYTES, start)
        start -= size
        tail = os.pread(descriptor, size, start) + tail
    return tail.rpartition(b"\n")[2], ended
