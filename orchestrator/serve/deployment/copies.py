"""Copies of requests, for a version in the shadow: made beside the clients' own, and thrown away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Coroutine
from typing import Any

from orchestrator.serve.api.errors import ApiError
from orchestrator.serve.engine.protocol import EngineError

_log = logging.getLogger(__name__)


class Copies:
    """Those under way, by the application that works on them. For one event loop."""

    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[None], str] = {}

    def start(self, app: str, work: Coroutine[Any, Any, None]) -> None:
        """Have a copy made; nobody waits for it."""
        task = asyncio.create_task(_unheard(work))
        self._tasks[task] = app
        task.add_done_callback(self._tasks.pop)

    def end_all_but(self, apps: Collection[str]) -> None:
        """End the copies of applications that are not among these: a version that goes need not finish them."""
        for task, app in self._tasks.items():
            if app not in apps:
                task.cancel()


async def _unheard(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except (EngineError, ApiError):
        return  # the version's observer has seen it; or the request is one that this version has no room for
    except Exception as error:  # noqa: BLE001 - a bug in a version that is tried out must not pass unseen, nor go further
        # Not the error's own words: they may hold what somebody asked.
        _log.error("a copy of a request failed with %s", type(error).__name__)
