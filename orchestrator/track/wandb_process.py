"""The process beside worker 0 that talks to W&B: `python -m orchestrator.track.wandb_process`.

Its first line on stdin says which run, each later one what to do (`orchestrator/track/wandb.py` writes them). Where the
end comes without a `close`, the worker has died: what it had finished is still sent, and the run ends as a failed one.
Where W&B cannot be reached or breaks down, the run goes on offline: its lines are kept in RUN/wandb for `wandb sync`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import queue
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestrator.errors import StoreError
from orchestrator.store import lock
from orchestrator.track import metric_log

_CLOSE_LIMIT_S = 30.0
"""From the end of stdin to the end of this process."""
_OTHERS_S = 10.0
"""How long the process of an attempt before, whose worker has died, is waited for."""
_TEMPORARY = "slipway-wandb-"
_NEW_S = 60.0
"""So long nobody takes a temporary folder that is not locked for one that was left behind."""
_POLL_S = 0.5
_NICENESS = 5

Message = Mapping[str, Any]
Inbox = queue.SimpleQueue[Message]


def main() -> None:
    """Until stdin ends, and at most 30 s longer."""
    os.nice(_NICENESS)
    first = sys.stdin.buffer.readline()
    if not first:  # the worker has died already
        return
    try:
        with own_temporary_folder() as temporary:
            _track(json.loads(first), temporary)
    except Exception as error:  # noqa: BLE001 - a tracker may fail in any way, and training goes on in every case
        sys.stderr.write(f"W&B failed, and nothing more is sent to it: {error!r}\n")
    os._exit(0)  # with all its threads, one of which waits for stdin


def _track(begin: Message, temporary: Path) -> None:
    folder = Path(begin["folder"]) / "wandb"
    folder.mkdir(exist_ok=True)
    os.environ.setdefault("WANDB_DATA_DIR", str(folder))  # else below the user's home, where it stays
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    voice, inbox = Voice(folder), Inbox()

    def give_up() -> None:
        voice.say(f"W&B did not finish within {_CLOSE_LIMIT_S:.0f} s; `wandb sync {folder}/*run-*` sends the rest")
        shutil.rmtree(temporary, ignore_errors=True)
        os._exit(1)

    lines = folder.parent / metric_log.FILE
    threading.Thread(target=_read, args=(inbox, lines, voice, give_up), name="stdin", daemon=True).start()
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(StoreError):  # what it has not written by then is sent by this one, or twice
            stack.enter_context(lock(folder / "process.lock", holds="W&B", wait_s=_OTHERS_S))
        try:
            _serve(begin, inbox, voice.say)
        except Exception as error:  # noqa: BLE001 - as above
            voice.say(f"W&B failed, and nothing more is sent to it: {error!r}; metrics.jsonl has all")


def _read(inbox: Inbox, lines: Path, voice: Voice, give_up: Callable[[], None]) -> None:
    """The thread that reads stdin: its end is seen whatever W&B is doing."""
    closed = False
    for raw in sys.stdin.buffer:
        message = json.loads(raw)
        closed = message["do"] == "close"
        if not closed:
            inbox.put(message)
    # Of a worker that has died: what comes after belongs to the next attempt, which sends it.
    length = lines.stat().st_size if lines.is_file() else 0
    inbox.put({"do": "end", "failed": not closed, "bytes": length})
    if not closed:
        voice.hang_up()
    time.sleep(_CLOSE_LIMIT_S)
    give_up()


def _serve(begin: Message, inbox: Inbox, say: Callable[[str], None]) -> None:
    from orchestrator.track.wandb_view import View  # here, where TMPDIR is our own: wandb uses it as it is imported

    view = View(begin, say)
    while True:
        try:
            message = inbox.get(timeout=_POLL_S)
        except queue.Empty:
            view.look()
            continue
        if message["do"] == "end":
            view.look(length=message["bytes"])
            view.finish(failed=message["failed"])
            return
        view.do(message)


class Voice:
    """Says a line on the worker's stderr. What W&B's own processes write there goes to a file of the run instead."""

    def __init__(self, folder: Path) -> None:
        self._stderr = os.fdopen(os.dup(2), "w", buffering=1)
        with (folder / "process.log").open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)

    def say(self, text: str) -> None:
        """To whoever still listens, and to the file."""
        for file in (self._stderr, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                file.write(f"{text}\n")
                file.flush()

    def hang_up(self) -> None:
        """The worker is gone, and whoever reads its stderr shall not wait for this process."""
        with contextlib.suppress(OSError):
            self._stderr.close()


@contextlib.contextmanager
def own_temporary_folder() -> Iterator[Path]:
    """A folder for all that W&B leaves in TMPDIR; also takes away those of processes that were killed."""
    above = Path(tempfile.gettempdir())
    for left in above.glob(f"{_TEMPORARY}*"):
        _remove_if_left(left)
    folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=above))
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_if_left(folder: Path) -> None:
    with contextlib.suppress(OSError), (folder / "lock").open() as file:
        if time.time() - os.fstat(file.fileno()).st_mtime > _NEW_S:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
