"""One piece of work at a time beside the training, in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Background:
    """What it did last: it runs, it is done, or it has failed."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def failed(self) -> bool:
        """Whether the work has ended in an error that `wait` has not raised yet."""
        return self._error is not None

    def start(self, work: Callable[[], None]) -> None:
        """Begin; the work before is waited for, and its error raised."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(work,), name=self._name, daemon=True)
        self._thread.start()

    def wait(self, limit_s: float | None = None) -> bool:
        """Until the work is done: its error is raised here, once. False where it runs on after `limit_s`."""
        if self._thread is not None:
            self._thread.join(limit_s)
            if self._thread.is_alive():
                return False
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error
        return True

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised by `wait`, in the thread that can act on it
            self._error = error
