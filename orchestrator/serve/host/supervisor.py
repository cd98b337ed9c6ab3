"""The process that owns a detached service: `python -m orchestrator.serve.host.supervisor PORT`.

`detached` starts it. On stdin: one JSON line that says what to serve, then `keep` once the starting command
has seen it ready. On stdout: one JSON line, {"ready": ...} or {"error": ...}. Stderr is the log.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from orchestrator.errors import Interrupted, SlipwayError
from orchestrator.job import Serve
from orchestrator.serve.host import records
from orchestrator.serve.host.detached import KEEP
from orchestrator.serve.host.foreground import serve_foreground
from orchestrator.serve.host.processes import kill_marked, marked, remove_ray_folders
from orchestrator.serve.host.records import Record

if TYPE_CHECKING:
    from orchestrator.serve.deployment.deploy import Service


_END_LIMIT_S = 20.0


def main() -> int:
    """Serve until SIGTERM; the exit code is the error's."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    report = _take_stdout()
    request = json.loads(_read_line())
    record = Record(**request["record"])
    threading.Thread(target=_end_with_starter, args=(record.mark,), name="starter", daemon=True).start()
    try:
        follow = Path(request["follow"]) if request["follow"] else None
        _supervise(record, Serve.model_validate(request["settings"]), report, follow)
    except SlipwayError as error:
        logging.getLogger(__name__).error("%s", error)
        _say(report, error.as_json())
        return error.exit_code
    except Interrupted as interrupt:
        return 128 + interrupt.signum
    finally:
        _end_descendants(record.mark)
    return 0


def _end_descendants(mark: str) -> None:
    """End what Ray left: a process that it was starting when it was stopped is born after its farewell."""
    ends_at = time.monotonic() + _END_LIMIT_S
    while (left := [pid for pid in marked(mark) if pid != os.getpid()]) and time.monotonic() < ends_at:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _supervise(record: Record, settings: Serve, report: TextIO, follow: Path | None) -> None:
    def ready(service: Service) -> None:
        records.write(replace(record, state="ready"))
        _say(report, {"ready": service.url})

    with records.hold(record.port):
        records.write(record)
        try:
            serve_foreground(
                Path(record.export),
                settings=settings,
                model_name=record.model,
                port=record.port,
                ready=ready,
                follow=follow,
                host=record.host,
            )
        finally:
            records.remove(record.port)


def _take_stdout() -> TextIO:
    """The pipe to the starting command as a file of its own; whatever a library prints goes to the log."""
    report = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return report


def _say(report: TextIO, document: dict[str, Any]) -> None:
    """The one line, once: whoever reads it may be gone after that."""
    if not report.closed:
        with report:
            report.write(json.dumps(document) + "\n")


def _read_line() -> str:
    """The next line of stdin, empty at its end. Not by sys.stdin: whoever waits in it blocks the exit."""
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(0, 1)):
        line += byte
    return line.decode()


def _end_with_starter(mark: str) -> None:
    """A starting command that ends before it has seen the service ready (Ctrl-C, kill -9) takes it along."""
    if _read_line() != KEEP:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_END_LIMIT_S)
        # An exception out of a signal handler can get lost in a library's clean-up code; this cannot.
        remove_ray_folders(os.getpid())
        kill_marked(mark)


if __name__ == "__main__":
    sys.exit(main())
