"""The engine of a replica: one compute thread that gives each completion under way one step in turn."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections import deque
from collections.abc import AsyncGenerator
from collections.abc import Sequence as Ids

import torch

from orchestrator.export.prove import ProvenModel
from orchestrator.serve.engine.protocol import EngineError, Piece, Sampling
from orchestrator.serve.engine.sequence import Sequence

_log = logging.getLogger(__name__)


class _Ticket:
    """A completion between the compute thread, which puts pieces in, and the event loop, which takes them."""

    def __init__(self, sequence: Sequence) -> None:
        self.sequence = sequence
        self.cancelled = False
        self._loop = asyncio.get_running_loop()
        self._results: asyncio.Queue[Piece | EngineError] = asyncio.Queue()

    def put(self, result: Piece | EngineError) -> None:
        """From the compute thread. A loop that was closed has no reader left."""
        try:
            self._loop.call_soon_threadsafe(self._results.put_nowait, result)
        except RuntimeError:
            self.cancelled = True

    async def take(self) -> Piece:
        """All that has come since the last call, as one piece: a slow reader gets fewer and larger ones."""
        results = [await self._results.get()]
        while not self._results.empty():
            results.append(self._results.get_nowait())
        for result in results:
            if isinstance(result, EngineError):
                raise result
        return Piece.joined([piece for piece in results if isinstance(piece, Piece)])


class Engine:
    """Interleaves completions fairly: each waits for one step of each other, never for the length of one."""

    def __init__(self, proven: ProvenModel, *, threads: int) -> None:
        """Starts the compute thread; torch computes on `threads` cores."""
        self._proven = proven
        self._threads = threads
        self._inbox: queue.SimpleQueue[_Ticket | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="slipway-engine", daemon=True)
        self._thread.start()

    async def generate(self, prompt_T: Ids[int], sampling: Sampling) -> AsyncGenerator[Piece, None]:
        """See `InferenceEngine`."""
        if not self._thread.is_alive():
            raise EngineError("the engine has ended")
        ticket = _Ticket(Sequence(self._proven, prompt_T, sampling))
        self._inbox.put(ticket)
        try:
            while True:
                piece = await ticket.take()
                yield piece
                if piece.finish_reason is not None:
                    return
        finally:
            ticket.cancelled = True

    async def check(self, *, timeout_s: float) -> None:
        """See `InferenceEngine`."""
        try:
            await asyncio.wait_for(self._one_token(), timeout_s)
        except asyncio.TimeoutError:
            raise EngineError(f"the engine made no token in {timeout_s} s") from None

    def close(self) -> None:
        """End the compute thread; completions under way fail."""
        self._inbox.put(None)
        self._thread.join()

    async def _one_token(self) -> None:
        async for _ in self.generate([self._proven.eos_id], Sampling(max_tokens=1, temperature=0.0)):
            pass

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        turns: deque[_Ticket] = deque()
        while self._admit(turns):
            ticket = turns.popleft()
            if not ticket.cancelled and self._step(ticket):
                turns.append(ticket)
        for ticket in turns:
            ticket.put(EngineError("the service is shutting down"))

    def _admit(self, turns: deque[_Ticket]) -> bool:
        """Take in new completions, waiting for one if there are none; False when the engine is closed."""
        while not turns or not self._inbox.empty():
            ticket = self._inbox.get()
            if ticket is None:
                return False
            turns.append(ticket)
        return True

    def _step(self, ticket: _Ticket) -> bool:
        """One step of one completion; whether it goes on."""
        try:
            piece = ticket.sequence.step()
        except Exception as error:  # noqa: BLE001 - one request's failure must reach its client and leave the thread alive
            _log.exception("a completion failed")
            ticket.put(EngineError(f"{type(error).__name__} while generating"))
            return False
        ticket.put(piece)
        return piece.finish_reason is None
