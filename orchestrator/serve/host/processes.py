"""The processes and ports of a service, as the kernel tells them. No torch, no Ray."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import socket
from pathlib import Path

from orchestrator.errors import ServeError

HOST = "127.0.0.1"
MARK = "SLIPWAY_SERVICE"
"""An environment variable that a supervisor gets and its descendants inherit: finds them when it is dead."""


def marked(mark: str) -> list[int]:
    """Living processes that carry this mark. Those of other users are not readable, and not ours."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def kill_marked(mark: str) -> None:
    """SIGKILL to all of them, to this process last: it must live to kill the others."""
    for pid in sorted(marked(mark), key=lambda pid: pid == os.getpid()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def remove_ray_folders(pid: int) -> None:
    """Remove what a supervisor that was killed could not: folders that `cluster.connect` named after it."""
    for left in Path("/tmp").glob(f"slipway-ray-{pid}-*"):
        shutil.rmtree(left, ignore_errors=True)


def port_is_free(port: int, host: str = HOST) -> bool:
    """Whether a server can listen there now.

    Raises:
        ServeError: nobody ever can: the port needs privileges, or the address is none of this machine's.
    """
    with socket.socket() as probe:
        # As servers do: connections of the last one that linger in TIME_WAIT do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError:
            raise ServeError(f"port {port} needs privileges", fix="choose one from 1024 up: --port 8000") from None
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise ServeError(
                    f"{host} is no address of this machine", fix="`ip address` lists them; 0.0.0.0 is all"
                ) from None
            return False
    return True


def check_port(port: int, host: str = HOST) -> None:
    """Raises ServeError if something listens there already."""
    if not port_is_free(port, host):
        raise ServeError(
            f"port {port} of {host} is in use",
            fix="choose another with --port, or end what listens there; `slipway serve --status` lists ours",
        )
