"""Pieces on their way to the gateway: fewer and larger ones when many streams are under way, and one of a whole answer.

No torch, no Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from orchestrator.serve.engine.protocol import Piece

_MESSAGES_PER_S = 300.0
"""Of one replica, over all its streams. A message costs some 2 ms of processor time on its way through Ray to a client:
without a bound thirty streams would leave the network no core to compute on."""

_SIGN_S = 5.0
"""After this long a whole answer that has begun says so: it is slow, and not stuck."""
SIGN = Piece("", 0)
"""Says that there is a token, and not which."""


@dataclass(frozen=True)
class Whole(Piece):
    """All of a completion."""

    after_first_s: float = 0.0
    """From its first token to its last."""


async def whole(pieces: AsyncGenerator[Piece, None], *, sign_s: float = _SIGN_S) -> AsyncGenerator[Piece, None]:
    """The same as one piece at the end; before it a `SIGN` if that takes long.

    Raises:
        Exception: what `pieces` raise.
    """
    made: list[Piece] = []
    times: list[float] = []

    async def take() -> None:
        async with aclosing(pieces):
            async for piece in pieces:
                made.append(piece)
                times.append(time.monotonic())

    taking = asyncio.create_task(take())
    try:
        while not (await asyncio.wait({taking}, timeout=sign_s))[0]:
            if made:
                yield SIGN
                await asyncio.wait({taking})
        await taking
        joined = Piece.joined(made)
        yield Whole(
            joined.text,
            joined.tokens,
            joined.finish_reason,
            joined.logprobs,
            joined.prompt_logprobs,
            after_first_s=times[-1] - times[0],
        )
    finally:
        taking.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await taking


class Pacer:
    """Shares a replica's messages among its streams. For one event loop."""

    def __init__(self, messages_per_s: float = _MESSAGES_PER_S) -> None:
        self._each_s = 1.0 / messages_per_s
        self._streams = 0

    async def paced(self, pieces: AsyncGenerator[Piece, None]) -> AsyncGenerator[Piece, None]:
        """The same pieces, joined where they come faster than the stream's share; the first and the last at once."""
        waiting: list[Piece] = []
        came, ended = asyncio.Event(), asyncio.Event()

        async def take() -> None:
            try:
                async with aclosing(pieces):
                    async for piece in pieces:
                        waiting.append(piece)
                        came.set()
            finally:
                ended.set()
                came.set()

        self._streams += 1
        taking = asyncio.create_task(take())
        try:
            while not ended.is_set() or waiting:
                await came.wait()
                came.clear()
                if waiting:
                    piece = Piece.joined(waiting)
                    waiting.clear()
                    yield piece
                    await self._pause(ended)
            await taking
        finally:
            self._streams -= 1
            taking.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await taking

    async def _pause(self, ended: asyncio.Event) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._each_s * self._streams):
                await ended.wait()
