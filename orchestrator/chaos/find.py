"""The processes of a run on this machine: who drives it, who works, and who hosts them."""

from __future__ import annotations

import contextlib
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator import presence
from orchestrator.errors import JobError
from orchestrator.presence import Command, Process, Worker
from orchestrator.track.events import read_events

_LOG = "logs/driver.log"
_BEGINNINGS = ("started", "resumed")


def workers(run: Path) -> list[Worker]:
    """The living workers of the newest attempt, by rank."""
    alive = [worker for worker in presence.read_workers(run) if worker.process.is_alive]
    newest = max((worker.attempt for worker in alive), default=0)
    return [worker for worker in alive if worker.attempt == newest]


def raylet_of(worker: Worker) -> Process | None:
    """The process that is a node to Ray: the one that has started a worker; None where it has no such."""
    process = presence.parent_of(worker.process)
    while process is not None and process.pid > 1:
        if _words(process)[:1] and Path(_words(process)[0]).name == "raylet":
            return process
        process = presence.parent_of(process)
    return None


def is_head(raylet: Process) -> bool:
    """Whether a node has Ray's control plane: with it the whole cluster goes."""
    return "--head" in _words(raylet)


def overtaken(run: Path) -> list[Process]:
    """Living workers of attempts before the newest."""
    newest = {worker.process for worker in workers(run)}
    return [found.process for found in presence.read_workers(run) if found.process not in newest]


def begun(run: Path) -> int:
    """The newest attempt that has begun to train; 0 before the first."""
    numbers = [event.get("attempt") for event in read_events(run) if event["event"] in _BEGINNINGS]
    return max((number for number in numbers if isinstance(number, int)), default=0)


def is_finished(run: Path) -> bool:
    """Whether the newest attempt has come to the run's end."""
    last = [event for event in read_events(run) if event["event"] in ("launched", *_BEGINNINGS, "ended")]
    return bool(last) and last[-1]["event"] == "ended" and last[-1].get("how") == "finished"


@dataclass
class Driver:
    """What drives a run; a run that was killed with it is started again by its own command."""

    run: Path
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    """By this drill: none is left a zombie."""

    def command(self) -> Command:
        """What drives it, or has last.

        Raises:
            JobError: nothing is noted.
        """
        noted = presence.read_command(self.run)
        if noted is None:
            raise JobError(
                f"{self.run.name} has no {presence.COMMAND}: nothing drives it, or an older Slipway does",
                fix="start it: slipway run JOB; then give this command again beside it",
            )
        return noted

    @property
    def process(self) -> Process | None:
        """The living driver; None where there is none."""
        for child in reversed(self._started):
            if child.poll() is None:
                return presence.process_of(child.pid)
        noted = presence.read_command(self.run)
        return noted.process if noted is not None and noted.process.is_alive else None

    def environ(self) -> dict[str, str]:
        """Of the living driver, as it was started; it is kept in memory alone.

        Raises:
            JobError: it belongs to somebody else, or has ended.
        """
        process = self.process
        try:
            raw = Path(f"/proc/{process.pid if process else 0}/environ").read_bytes()
        except OSError as error:
            raise JobError(
                f"the environment of {self.run.name}'s driver cannot be read: {error.strerror}",
                fix="give this command as the user who runs the driver",
            ) from None
        pairs = (os.fsdecode(entry).partition("=") for entry in raw.split(b"\0") if b"=" in entry)
        return {name: value for name, _, value in pairs}

    def start_again(self, environ: dict[str, str]) -> None:
        """Give the run's own command again; what it prints goes to `logs/driver.log` of the run."""
        command = self.command()
        log = self.run / _LOG
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as output:
            self._started.append(
                subprocess.Popen(
                    command.argv,
                    cwd=command.cwd,
                    env=environ,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,  # Ctrl-C of the drill is none of the run
                )
            )

    def exit_codes(self) -> list[int]:
        """Of the drivers that this drill has started, and that have ended."""
        return [code for child in self._started if (code := child.poll()) is not None]


def _words(process: Process) -> list[str]:
    with contextlib.suppress(OSError):
        return os.fsdecode(Path(f"/proc/{process.pid}/cmdline").read_bytes()).rstrip("\0").split("\0")
    return []
