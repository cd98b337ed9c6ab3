"""Start, list and stop services that outlive the command: each is owned by a supervisor process of ours.

No torch, no Ray: `slipway serve --status` and `--stop` use this module, and need no store.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import IO, Any

from orchestrator.errors import (
    CapacityError,
    DataError,
    JobError,
    ServeError,
    SlipwayError,
    StoreError,
    TrainError,
)
from orchestrator.job import Serve
from orchestrator.serve import records
from orchestrator.serve.processes import HOST, MARK, check_port, kill_marked, marked, remove_ray_folders
from orchestrator.serve.records import Record

KEEP = "keep\n"
"""What a starting command says to its supervisor when it has seen it ready; before that, its end ends the supervisor."""
_STOP_LIMIT_S = 30.0
_KILL_LIMIT_S = 15.0
_POLL_S = 0.05
_ERRORS = {c.kind: c for c in (JobError, DataError, CapacityError, TrainError, StoreError, ServeError)}


def start_detached(export: Path, *, settings: Serve, model_name: str, port: int) -> dict[str, Any]:
    """Start a service that lives on, and wait until it is ready and warm.

    Returns: {"url", "model", "pid"}.

    Raises:
        SlipwayError: whatever the supervisor met, with its class and exit code; nothing is left running.
    """
    _refuse_second(port)
    check_port(port)
    mark = f"{port}-{uuid.uuid4().hex}"
    with records.log_path(port).open("w") as log:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.serve.supervisor", str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # Ctrl-C in the terminal is for the command; the supervisor hears of it from us
            env={**os.environ, MARK: mark},
        )
    request = {"export": str(export.resolve()), "model": model_name, "settings": settings.model_dump(), "mark": mark}
    try:
        answer = _talk(supervisor, request)
        if "error" in answer:
            raise _rebuilt(answer["error"])
        _say(supervisor.stdin, KEEP)
        return {**answer["ready"], "pid": supervisor.pid}
    except BaseException:  # Ctrl-C too: who did not see it ready must not leave it running
        _end([_record_of(supervisor.pid, port, mark)])
        raise
    finally:
        for pipe in (supervisor.stdin, supervisor.stdout):
            if pipe is not None and not pipe.closed:
                pipe.close()


def status() -> list[dict[str, Any]]:
    """The detached services of this user on this machine, each with `answers`: whether it does right now."""
    return [{**record.as_json(), "answers": _answers(record.port)} for record in records.living()]


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
            f"no detached service runs on port {port}; " + (f"there are on {others}" if others else "there is none at all"),
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


def _talk(supervisor: subprocess.Popen[str], request: dict[str, Any]) -> dict[str, Any]:
    """Say what to serve; wait for the one line that says how it went."""
    _say(supervisor.stdin, json.dumps(request) + "\n")
    assert supervisor.stdout is not None
    line = supervisor.stdout.readline()
    if line:
        answer: dict[str, Any] = json.loads(line)
        return answer
    port = int(supervisor.args[-1])  # type: ignore[index]
    last = "".join(records.log_path(port).read_text(encoding="utf-8", errors="replace").splitlines(True)[-5:]).strip()
    raise ServeError(
        f"the supervisor ended before the service was ready (exit code {supervisor.wait()}): {last or 'it said nothing'}",
        fix=f"read {records.log_path(port)}",
    )


def _say(pipe: IO[str] | None, text: str) -> None:
    assert pipe is not None
    try:
        pipe.write(text)
        pipe.flush()
    except BrokenPipeError:
        pass  # it has ended; its answer, or the lack of one, says why


def _rebuilt(error: dict[str, Any]) -> SlipwayError:
    """The supervisor's error as this process's own."""
    return _ERRORS.get(error["kind"], ServeError)(error["message"], fix=error["fix"])


def _record_of(pid: int, port: int, mark: str) -> Record:
    return Record(
        port=port, pid=pid, mark=mark, url="", model="", export="", started_at=time.time(), state="starting"
    )


def _end(chosen: list[Record]) -> None:
    """SIGTERM to each supervisor, SIGKILL to whatever is left after a while; returns when nothing is."""
    for record in chosen:
        if record.pid in marked(record.mark):  # else it is dead, and the number may be another process's by now
            os.kill(record.pid, signal.SIGTERM)
    for record in chosen:
        if not _wait_gone(record, _STOP_LIMIT_S):
            kill_marked(record.mark)
            if not _wait_gone(record, _KILL_LIMIT_S):
                raise ServeError(f"processes {marked(record.mark)} of the service on port {record.port} do not end")
        remove_ray_folders(record.pid)
        records.remove(record.port)


def _wait_gone(record: Record, limit_s: float) -> bool:
    deadline = time.monotonic() + limit_s
    while marked(record.mark):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=1.0)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
