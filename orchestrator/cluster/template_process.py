"""The template: a process that has imported what workers need, and becomes a worker by a copy of itself.

    python -m orchestrator.cluster.template_process STARTER LISTENER MODULES

STARTER is the process that has started it, LISTENER the number of a socket that listens, whose other end is
`template_client`. A copy has the asker's arguments, environment, folder, open files and blocked signals. The template
ends by itself when its starter has.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
from collections.abc import Mapping
from typing import Any

from orchestrator.cluster.template_client import TAKEN

_LOOK_EVERY_S = 1.0
_ASK_LIMIT_S = 5.0
_READ_AT_IMPORT = ("RAY_", "OMP_", "MKL_", "OPENBLAS_", "GOTO_", "KMP_", "TORCH", "PYTORCH", "DS_", "LD_", "PYTHON")
_THREADS = "OMP_NUM_THREADS"
_FREE = frozenset({_THREADS, "RAY_LD_PRELOAD_ON_WORKERS", "PYTHONBREAKPOINT"})
"""Read at import too, and made up for, or of no account."""

Wanted = dict[str, Any]


def differences(here: Mapping[str, str], asked: Mapping[str, str]) -> list[str]:
    """Variables of which another value would have been read while the template imported: a copy would be wrong.

    What is here alone and not Ray's was set by libraries that the driver has imported since its Ray began.
    """
    names = {*asked, *(name for name in here if name.startswith("RAY_"))} - _FREE
    return sorted(name for name in names if name.startswith(_READ_AT_IMPORT) and here.get(name) != asked.get(name))


def serve(listener: socket.socket, *, starter: int, started_with: Mapping[str, str]) -> tuple[Wanted, list[int]] | None:
    """Answer until the starter has ended: None. In each copy: what it is to become, and the files it is given."""
    listener.settimeout(_LOOK_EVERY_S)
    while os.getppid() == starter:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        with connection:
            try:
                wanted, files = _read(connection)
            except (OSError, ValueError):
                continue  # it has gone away, and starts by itself
            if found := differences(started_with, wanted["environment"]):
                sys.stderr.write(f"refused: {', '.join(found)} differ\n")
            elif (copy := os.fork()) == 0:
                listener.close()
                return wanted, files
            else:
                _tell(connection, copy)
        for file in files:
            os.close(file)
    return None


def _tell(connection: socket.socket, copy: int) -> None:
    """Who asked that there is a copy; one that has waited too long has started by itself, and there must be no two."""
    try:
        connection.sendall(TAKEN)
    except OSError:
        with contextlib.suppress(ProcessLookupError):
            os.kill(copy, signal.SIGKILL)


def _read(connection: socket.socket) -> tuple[Wanted, list[int]]:
    connection.settimeout(_ASK_LIMIT_S)
    size, files, _, _ = socket.recv_fds(connection, 4, 3)
    try:
        with connection.makefile("rb") as stream:
            return json.loads(stream.read(int.from_bytes(size, "big"))), files
    except (OSError, ValueError):
        for file in files:
            os.close(file)
        raise


def become(wanted: Wanted, files: list[int], *, set_by_imports: Mapping[str, str]) -> None:
    """Turn this copy into what was asked for, up to the first line of its script."""
    os.setpgid(0, 0)  # a raylet kills the whole group of a worker that has died
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, wanted["blocked"])
    for standard, given in enumerate(files):
        os.dup2(given, standard)
        os.close(given)
    os.environ.clear()
    os.environ.update({**set_by_imports, **wanted["environment"]})
    os.chdir(wanted["folder"])
    sys.argv = wanted["script"]
    sys.path[0] = os.path.dirname(sys.argv[0])
    _make_different()


def _make_different() -> None:
    """What a process draws or reads once, at its start, would be the same in all copies."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.seed()
        if (threads := os.environ.get(_THREADS, "")).isdigit():
            torch.set_num_threads(int(threads))
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed()


def main() -> None:
    """The process."""
    starter, listener, modules = int(sys.argv[1]), socket.socket(fileno=int(sys.argv[2])), sys.argv[3]
    started_with = dict(os.environ)
    for module in modules.split(","):
        importlib.import_module(module)
    set_by_imports = {name: value for name, value in os.environ.items() if started_with.get(name) != value}
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # copies that end leave nothing to be asked for
    gc.collect()
    gc.freeze()  # the pages of what is imported stay shared
    copy = serve(listener, starter=starter, started_with=started_with)
    if copy is not None:
        become(*copy, set_by_imports=set_by_imports)
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
