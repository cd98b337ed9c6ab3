"""Between the engine's thread, which makes tokens, and the event loops in which clients wait for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import replace

from orchestrator.serve.engine.completion import Completion, Made
from orchestrator.serve.engine.protocol import EngineError, Piece
from orchestrator.serve.engine.writer import Writer


class Ticket:
    """A completion between the thread, which puts results in, and the event loop, which takes them."""

    def __init__(self, completion: Completion) -> None:
        self.completion = completion
        self.loop = asyncio.get_running_loop()
        self._results: list[Made | EngineError] = []
        self._come = asyncio.Event()

    def put(self, result: Made | EngineError) -> None:
        """In the event loop."""
        self._results.append(result)
        self._come.set()

    async def take(self) -> list[Made | EngineError]:
        """All that has come since the last call: a slow reader gets fewer and larger pieces."""
        await self._come.wait()
        self._come.clear()
        results, self._results = self._results, []
        return results


class Order:
    """What is to be done between two steps, by the thread."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.seconds: Future[float] = Future()
        self._work = work

    def carry_out(self) -> None:
        """Do it; `seconds` says then how long it took."""
        start = time.perf_counter()
        self._work()
        self.seconds.set_result(time.perf_counter() - start)


Delivery = tuple[Ticket | None, "Made | EngineError"]
"""Whose a result is, if anybody waits for it yet, and the result."""


def hand_out(results: Iterable[Delivery]) -> None:
    """To each ticket, in its event loop; one call for all that belong to a loop, as each call wakes it."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, Made | EngineError]]] = {}
    for ticket, result in results:
        if ticket is not None:
            by_loop.setdefault(ticket.loop, []).append((ticket, result))
    for loop, own in by_loop.items():
        try:
            loop.call_soon_threadsafe(_put, own)
        except RuntimeError:  # a loop that was closed has no reader left
            for ticket, _ in own:
                ticket.completion.cancelled = True


def _put(results: list[tuple[Ticket, Made | EngineError]]) -> None:
    for ticket, result in results:
        ticket.put(result)


def piece_of(results: list[Made | EngineError], writer: Writer) -> Piece:
    """What these results add to the text. Raises the EngineError that is among them."""
    pieces: list[Piece] = []
    for result in results:
        if isinstance(result, EngineError):
            raise EngineError(str(result))
        if result.token is None:
            pieces.append(Piece("", 0, result.reason, prompt_logprobs=result.prompt_logprobs))
        else:
            piece = writer.push(result.token, result.logprob)
            pieces.append(replace(piece, prompt_logprobs=result.prompt_logprobs))
        if pieces[-1].finish_reason is not None:
            break
    return Piece.joined(pieces)
