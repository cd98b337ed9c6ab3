"""Exports for a service that follows a run, by a process of their own that stands ready."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from orchestrator.errors import ServeError

_END_LIMIT_S = 5.0
_TOLD_BYTES = 500
"""Of what a process wrote that has died."""


class Exporter:
    """Exports runs in a child that has imported what that needs: seconds that no checkpoint waits for.

    Not in this process: where a checkpoint is more than memory holds, the kernel ends the child and not the service.
    The next call starts another.
    """

    def __init__(self) -> None:
        """Starts the child, and does not wait for it."""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as this object
        self._child = self._start()

    def __enter__(self) -> Exporter:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._errors.close()

    def __call__(self, run: Path) -> Path:
        """Export what of a run is served. Returns the export's folder.

        Raises:
            ServeError: it failed, and how.
        """
        if self._child.poll() is not None:
            self._end()
            self._child = self._start()
        try:
            document = self._asked(run)
        except (OSError, ValueError):
            code = self._end()
            self._errors.seek(0)
            told = self._errors.read()[-_TOLD_BYTES:].decode(errors="replace")
            raise ServeError(f"the export of {run.name} ended with code {code}: {told}") from None
        if "export" in document:
            return Path(document["export"])
        raise ServeError(f"{run.name} could not be exported: {document['error']['message']}")

    def _asked(self, run: Path) -> dict[str, Any]:
        """The child's answer; OSError or ValueError where it gives none."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps(str(run)) + "\n")
        self._child.stdin.flush()
        found: dict[str, Any] = json.loads(self._child.stdout.readline())
        return found

    def _end(self) -> int:
        """Have the child end, which may finish what it has begun for a moment; its exit code."""
        for pipe in (self._child.stdin, self._child.stdout):
            with contextlib.suppress(OSError):  # it has ended in the middle
                pipe and pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._child.wait(_END_LIMIT_S)
        self._child.kill()
        return self._child.wait()

    def _start(self) -> subprocess.Popen[str]:
        self._errors.seek(0)
        self._errors.truncate()
        command = [sys.executable, "-m", "orchestrator.export.ready"]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._errors, text=True)
