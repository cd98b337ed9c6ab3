"""Ray's workers as copies of a process that has their imports done: they start in a second, and share its memory.

On a Ray of our own. Each kind of worker has a template (`template_process`), which begins when it is first asked for;
Ray starts a worker with `template_client`, which asks the template, and starts Python as ever where there is none.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.cluster import preload, template_client
from orchestrator.cluster.own import deaf_to_sigterm
from orchestrator.presence import Process, descendants, process_of

_PROCESS = "orchestrator.cluster.template_process"
_WAITING = 128
_END_LIMIT_S = 5.0


class Templates:
    """The templates of one Ray.

    Args:
        folder: where their sockets and logs are; nobody else may have access.
        variables: the environment of its workers; libraries set some of their own when they are imported later.
    """

    def __init__(self, folder: Path, variables: Mapping[str, str]) -> None:
        self._folder = folder
        self._variables = variables
        self._made: dict[str, subprocess.Popen[bytes]] = {}

    def begin(self, modules: str) -> Path:
        """Have a template import modules (commas between them) if none does yet; returns its socket, at once."""
        path = self._folder / f"template-{hashlib.sha256(modules.encode()).hexdigest()[:8]}"
        if modules not in self._made:
            with socket.socket(socket.AF_UNIX) as listener, path.with_suffix(".log").open("ab") as log:
                listener.bind(str(path))
                listener.listen(_WAITING)  # who asks before it has imported waits for it
                with deaf_to_sigterm():  # while it lives we know its copies, which `own.end` has to end
                    self._made[modules] = subprocess.Popen(
                        [sys.executable, "-m", _PROCESS, str(os.getpid()), str(listener.fileno()), modules],
                        env=dict(self._variables),
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        pass_fds=[listener.fileno()],
                        start_new_session=True,  # Ctrl-C is for the driver, which ends the rest
                    )
        return path

    def copies(self) -> list[Process]:
        """The workers that were made, and live."""
        templates = [found for made in self._made.values() if (found := process_of(made.pid)) is not None]
        return [copy for template in templates for copy in descendants(template)]

    def end(self) -> None:
        """End them. Copies live on; those that were killed before are no longer there at all."""
        for made in self._made.values():
            made.kill()
            made.wait(_END_LIMIT_S)
        self._made.clear()


_open: list[Templates] = []
"""Those of this process's own Ray; of at most one."""


def open_templates(folder: Path) -> None:
    """From now on, workers of this process's own Ray start as copies."""
    import ray
    from ray._private import worker

    assert worker._global_node is not None
    raylet = worker._global_node.all_processes["raylet"][0].process.pid
    ours = {"RAY_JOB_ID": ray.get_runtime_context().get_job_id(), "RAY_RAYLET_PID": str(raylet)}
    _open.append(Templates(folder, {**os.environ, **ours}))


def copies() -> list[Process]:
    """Workers of our own Ray that are no children of its raylet."""
    return [copy for own in _open for copy in own.copies()]


def close_templates() -> None:
    """End them: after Ray, so that a worker that was killed has a parent that lets go of it."""
    while _open:
        _open.pop().end()


def begin(modules: str) -> None:
    """Have a template for workers that import modules ready soon, where there are templates."""
    for own in _open:
        own.begin(modules)


def environment(modules: str, *, template: str) -> dict[str, Any]:
    """The runtime environment of actors that import modules, as copies of a template that has imported more."""
    variables = {preload.VARIABLE: modules}
    if not _open:
        return {"env_vars": variables}
    variables[template_client.SOCKET] = str(_open[-1].begin(template))
    command = [sys.executable, "-I", "-S", template_client.__file__]
    return {"env_vars": variables, "py_executable": shlex.join(command)}
