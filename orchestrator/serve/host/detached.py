"""Start, list and stop services that outlive the command: each is owned by a supervisor process of ours.

No torch, no Ray: `slipway serve --status` and `--stop` use this module, and need no store.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from orchestrator.errors import ServeError, SlipwayError
from orchestrator.job import Serve
from orchestrator.serve.host import control, records
from orchestrator.serve.host.address import asked_at, check_host
from orchestrator.serve.host.control import rebuilt
from orchestrator.serve.host.processes import HOST, MARK, check_port, kill_marked, marked, remove_ray_folders
from orchestrator.serve.host.records import Record

KEEP = "keep\n"
"""What a starting command says once it has seen the service ready. If it ends before, the supervisor does."""
_STOP_LIMIT_S = 30.0
_KILL_LIMIT_S = 15.0
_POLL_S = 0.05


def start_detached(
    export: Path, *, settings: Serve, model_name: str, port: int, follow: Path | None = None, host: str = HOST
) -> dict[str, Any]:
    """Start a service that lives on, and wait until it is ready and warm.

    `follow` is a run whose newer checkpoints it brings as they come.

    Returns: {"url", "model", "pid"}.

    Raises:
        SlipwayError: whatever the supervisor met, with its class and exit code; nothing is left running.
    """
    _refuse_second(port)
    check_host(host, settings)
    check_port(port, host)
    mark = f"{port}-{uuid.uuid4().hex}"
    supervisor = _spawn(port, mark)
    record = Record(
        port=port,
        pid=supervisor.pid,
        mark=mark,
        url=f"http://{asked_at(host)}:{port}/v1",
        model=model_name,
        export=str(export.resolve()),
        started_at=time.time(),
        state="starting",
        host=host,
    )
    try:
        request = {"record": record.as_json(), "settings": settings.model_dump()}
        answer = _talk(supervisor, {**request, "follow": str(follow) if follow else None})
        if answer is None:
            raise _silent_end(record, supervisor.wait())
        if "error" in answer:
            raise rebuilt(answer["error"])
        _say(supervisor, KEEP)
    except BaseException:  # Ctrl-C too: who did not see it ready must not leave it running
        _end([record])
        raise
    finally:
        for pipe in (supervisor.stdin, supervisor.stdout):
            assert pipe is not None
            pipe.close()
    return {"url": record.url, "model": record.model, "pid": record.pid}


def status() -> list[dict[str, Any]]:
    """The detached services of this user on this machine, each with `answers`: whether it does right now.

    One whose supervisor was killed is `lost`: what is left of it ends by itself, or at `stop`.
    """
    rows = []
    for record in records.living():
        state = record.state if records.is_held(record.port) else "lost"
        row = {**record.as_json(), "state": state, "answers": _answers(record)}
        rows.append({**row, "versions": _versions(record.port) if row["answers"] else []})
    return rows


def _versions(port: int) -> list[dict[str, Any]]:
    """What a service says that it serves; nothing if it is ending this very moment."""
    try:
        found: list[dict[str, Any]] = control.call(port, {"command": "status"})["versions"]
    except SlipwayError:
        return []
    return found


def stop(port: int | None = None) -> list[dict[str, Any]]:
    """End the service on this port, or all of them; returns what was ended once nothing of it is left.

    Raises:
        ServeError: there is none on this port, or a process of it does not end.
    """
    running = records.living()
    chosen = [record for record in running if port in (None, record.port)]
    if port is not None and not chosen:
        others = ", ".join(str(record.port) for record in running)
        raise ServeError(
            f"no detached service runs on port {port}; "
            + (f"there are on {others}" if others else "there is none at all"),
            fix="`slipway serve --status` lists them",
        )
    _end(chosen)
    return [record.as_json() for record in chosen]


def _refuse_second(port: int) -> None:
    for record in records.living():
        if record.port == port:
            raise ServeError(
                f"port {port} serves {record.model} already (process {record.pid})",
                fix=f"choose another with --port, or `slipway serve --stop --port {port}`",
            )


def _spawn(port: int, mark: str) -> subprocess.Popen[str]:
    with records.log_path(port).open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator.serve.host.supervisor", str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # Ctrl-C in the terminal reaches the command; it tells the supervisor
            env={**os.environ, MARK: mark},
        )


def _talk(supervisor: subprocess.Popen[str], request: dict[str, Any]) -> dict[str, Any] | None:
    """Say what to serve; wait for the one line that says how it went. None if the supervisor ended without."""
    _say(supervisor, json.dumps(request) + "\n")
    assert supervisor.stdout is not None
    line = supervisor.stdout.readline()
    answer: dict[str, Any] | None = json.loads(line) if line else None
    return answer


def _say(supervisor: subprocess.Popen[str], text: str) -> None:
    assert supervisor.stdin is not None
    # If it has ended, its answer says why, or the lack of one.
    with contextlib.suppress(BrokenPipeError):
        supervisor.stdin.write(text)
        supervisor.stdin.flush()


def _silent_end(record: Record, exit_code: int) -> ServeError:
    log = records.log_path(record.port)
    last = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:])
    return ServeError(
        f"the supervisor ended with code {exit_code} before the service was ready: {last or 'no word why'}",
        fix=f"read {log}",
    )


def _end(chosen: list[Record]) -> None:
    """SIGTERM to each supervisor, SIGKILL to whatever is left after a while; returns when nothing is."""
    for record in chosen:
        if record.pid in marked(record.mark):  # else it is dead, and the number may be another process's by now
            os.kill(record.pid, signal.SIGTERM)
        else:
            kill_marked(record.mark)
    for record in chosen:
        if not _wait_gone(record, _STOP_LIMIT_S) and not _wait_gone(record, _KILL_LIMIT_S, kill=True):
            raise ServeError(f"processes {marked(record.mark)} of port {record.port} do not end")
        remove_ray_folders(record.pid)
        records.remove_dead(record.port)


def _wait_gone(record: Record, limit_s: float, *, kill: bool = False) -> bool:
    """Whether nothing of it is left in time. `kill`: again and again, since a process may be born while others die."""
    deadline = time.monotonic() + limit_s
    while marked(record.mark):
        if kill:
            kill_marked(record.mark)
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _answers(record: Record) -> bool:
    connection = http.client.HTTPConnection(asked_at(record.host), record.port, timeout=1.0)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
