"""Several streams as one, and an end to what takes too long. Pure asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from typing import Generic, TypeVar

import anyio

from orchestrator.serve.api.errors import ApiError

_T = TypeVar("_T")
_HELD_PER_SOURCE = 4
"""Items that may wait for a slow reader; then the sources wait too."""


async def merged(
    sources: Sequence[Callable[[], AsyncGenerator[_T, None]]], *, at_once: int, deadline_s: float | None = None
) -> AsyncGenerator[_T, None]:
    """The items of all sources as they come, of each in its order; at most `at_once` are open.

    Raises:
        Exception: what a source raised; the others are closed.
        ApiError: 504, `deadline_s` have passed since the first item was asked for.
    """
    ends_at = None if deadline_s is None else asyncio.get_running_loop().time() + deadline_s
    # One source needs no tasks: that is most requests, and a task switch for each token would be felt.
    items = sources[0]() if len(sources) == 1 else _Merge(sources, at_once).items()
    async with aclosing(items):
        while True:
            try:
                item = await _next(items, ends_at)
            except StopAsyncIteration:
                return
            yield item


async def _next(items: AsyncGenerator[_T, None], ends_at: float | None) -> _T:
    if ends_at is None:
        return await anext(items)
    try:
        with anyio.fail_after(max(0.0, ends_at - asyncio.get_running_loop().time())):
            return await anext(items)
    except TimeoutError:
        raise ApiError(
            "The request took longer than this service allows; ask for fewer tokens", status=504, code="timeout"
        ) from None


class _End:
    """A worker has no more; or it failed."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error


class _Merge(Generic[_T]):
    def __init__(self, sources: Sequence[Callable[[], AsyncGenerator[_T, None]]], at_once: int) -> None:
        self._waiting: Iterator[Callable[[], AsyncGenerator[_T, None]]] = iter(sources)
        self._workers = min(at_once, len(sources))
        self._queue: asyncio.Queue[_T | _End] = asyncio.Queue(self._workers * _HELD_PER_SOURCE)

    async def items(self) -> AsyncGenerator[_T, None]:
        tasks = [asyncio.create_task(self._work()) for _ in range(self._workers)]
        open_workers = self._workers
        try:
            while open_workers:
                item = await self._queue.get()
                if not isinstance(item, _End):
                    yield item
                elif item.error is not None:
                    raise item.error
                else:
                    open_workers -= 1
        finally:
            for task in tasks:
                task.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self) -> None:
        try:
            for source in self._waiting:
                async with aclosing(source()) as items:
                    async for item in items:
                        await self._queue.put(item)
        except Exception as error:  # noqa: BLE001 - it is raised where the items are read
            await self._queue.put(_End(error))
        else:
            await self._queue.put(_End(None))
