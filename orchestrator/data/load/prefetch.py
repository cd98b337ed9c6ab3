"""Reading ahead: a thread makes the next step's batches while this step is computed."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

Item = TypeVar("Item")
_JOIN_S = 10.0


class Prefetcher(Generic[Item]):
    """What `make(step)` gives for steps `first` to `last`, in order, made by one thread up to `depth` steps ahead.

    A context manager and an iterator: when its block ends, the thread has ended too, as soon as what it is reading
    is read. `make` runs in that thread alone. What it raises is raised by `next()` at the step that it belongs to.
    """

    def __init__(self, make: Callable[[int], Item], *, first: int, last: int, depth: int = 2) -> None:
        self._make, self._steps, self._depth = make, range(first, last + 1), depth
        self._made: deque[Item] = deque()
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._ended = False
        self._closed = False
        self.waited_s = 0.0
        """Time that the reader waited since the start."""
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)

    def __enter__(self) -> Prefetcher[Item]:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._changed:
            self._closed = True
            self._made.clear()
            self._changed.notify_all()
        self._thread.join(_JOIN_S)

    def __iter__(self) -> Prefetcher[Item]:
        return self

    def __next__(self) -> Item:
        began_at = time.perf_counter()
        with self._changed:
            self._changed.wait_for(lambda: self._made or self._ended or self._closed)
            self.waited_s += time.perf_counter() - began_at
            if self._made:
                item = self._made.popleft()
                self._changed.notify_all()
                return item
            if self._error is not None:
                raise self._error
            raise StopIteration

    def _run(self) -> None:
        try:
            for step in self._steps:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or len(self._made) < self._depth)
                    if self._closed:
                        return
                item = self._make(step)
                with self._changed:
                    self._made.append(item)
                    self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001 - it belongs to the thread that reads
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
