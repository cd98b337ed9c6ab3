"""How a command speaks with a service that runs: a Unix socket beside its record, for the owner alone. No Ray.

A request is one line of JSON. The answer is lines of JSON: {"progress": TEXT} as it goes on, and at the end
{"result": ...} or {"error": ...}.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from orchestrator.errors import (
    CapacityError,
    DataError,
    JobError,
    ServeError,
    SlipwayError,
    StoreError,
    TrainError,
)
from orchestrator.serve.host import records

Tell = Callable[[str], None]
Handle = Callable[[dict[str, Any], Tell], dict[str, Any]]
"""A request, and where lines for people go; the result. Raises SlipwayError."""
_ERRORS = {c.kind: c for c in (JobError, DataError, CapacityError, TrainError, StoreError, ServeError)}
_LINE_BYTES = 1 << 20
_CONNECT_LIMIT_S = 2.0
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def _reachable(port: int) -> Iterator[str]:
    """A name of the port's socket that is short enough: names of sockets are limited to 107 bytes."""
    descriptor = os.open(records.folder(), os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{_path(port).name}"
    finally:
        os.close(descriptor)


def _path(port: int) -> Path:
    return records.folder() / f"{port}.sock"


@contextlib.contextmanager
def listening(port: int, handle: Handle) -> Iterator[None]:
    """Answer requests in threads while the block lasts, several at a time."""
    with socket.socket(socket.AF_UNIX) as server:
        _path(port).unlink(missing_ok=True)  # of a service that was killed: the port is ours now
        with _reachable(port) as name:
            server.bind(name)
        _path(port).chmod(0o600)
        server.listen()
        threading.Thread(target=_accept, args=(server, handle), name="control", daemon=True).start()
        try:
            yield
        finally:
            _path(port).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts


def _accept(server: socket.socket, handle: Handle) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:  # closed
            return
        threading.Thread(target=_answer, args=(connection, handle), name="command", daemon=True).start()


def _answer(connection: socket.socket, handle: Handle) -> None:
    """One request. A command that has gone does not stop what it has begun: a rollout decides for itself."""

    def write(document: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            connection.sendall((json.dumps(document) + "\n").encode())

    with connection, connection.makefile("rb") as lines:
        try:
            request = json.loads(lines.readline(_LINE_BYTES))
            write({"result": handle(request, lambda line: write({"progress": line}))})
        except SlipwayError as error:
            write(error.as_json())
        except Exception as error:  # noqa: BLE001 - whatever it is, the command must hear of it
            _log.exception("a command failed")
            write(ServeError(f"the service failed at this: {type(error).__name__}: {error}").as_json())


def is_listening(port: int) -> bool:
    """Whether a service of ours on this port takes commands."""
    try:
        with _connected(port):
            return True
    except OSError:
        return False


def call(port: int, request: dict[str, Any], tell: Tell = lambda _: None) -> dict[str, Any]:
    """Have a service do something; returns its result.

    Raises:
        SlipwayError: what the service met, with its class and exit code; or there is no such service.
    """
    try:
        with _connected(port) as connection, connection.makefile("rb") as lines:
            connection.sendall((json.dumps(request) + "\n").encode())
            for line in lines:
                document = json.loads(line)
                if "progress" in document:
                    tell(document["progress"])
                elif "error" in document:
                    raise rebuilt(document["error"])
                else:
                    result: dict[str, Any] = document["result"]
                    return result
    except (FileNotFoundError, ConnectionRefusedError):
        raise ServeError(
            f"no service of ours takes commands on port {port}", fix="`slipway serve --status` lists them"
        ) from None
    except OSError as error:
        raise ServeError(f"the service on port {port} does not answer: {error}") from error
    raise ServeError(f"the service on port {port} ended before it had answered", fix="`slipway serve --status`")


@contextlib.contextmanager
def _connected(port: int) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as connection, _reachable(port) as name:
        connection.settimeout(_CONNECT_LIMIT_S)
        connection.connect(name)
        connection.settimeout(None)  # a canary takes minutes
        yield connection


def rebuilt(error: dict[str, Any]) -> SlipwayError:
    """Another process's error as this one's own."""
    return _ERRORS.get(error["kind"], ServeError)(error["message"], fix=error["fix"])
