"""What clients have had of each version, as the gateway sees it: the ground on which a rollout is judged."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from collections.abc import Sequence as Ids
from contextlib import aclosing
from dataclasses import dataclass

from orchestrator.serve.deployment.pace import SIGN, Whole
from orchestrator.serve.engine.encoder_protocol import Encoded, EncoderEngine
from orchestrator.serve.engine.protocol import EngineBusyError, EngineError, InferenceEngine, Piece, Sampling

_KEPT = 4096
"""Ended requests of one version that are remembered one by one."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What clients have had of one version in a span of time."""

    requests: int = 0
    """Ended ones."""
    errors: int = 0
    """Of these, those that the engine failed; what clients did wrong does not count."""
    refused: int = 0
    """Besides these: they came when as many as may be were under way, and were not begun."""
    first_token_s: float | None = None
    """Median; None as long as there is none."""
    token_s: float | None = None
    """Median time of one token after the first."""
    silent_s: float = 0.0
    """How long the oldest request under way has waited for its first token."""


@dataclass
class Request:
    """One request, from the moment it was handed to the engine."""

    began_at: float
    first_at: float | None = None
    ended_at: float | None = None
    tokens: int = 0
    failed: bool = False

    @property
    def first_token_s(self) -> float | None:
        """None: there has been no token."""
        return None if self.first_at is None else self.first_at - self.began_at

    @property
    def token_s(self) -> float | None:
        """Time of one token after the first; None for an answer that has no second one."""
        if self.first_at is None or self.ended_at is None or self.tokens < 2:
            return None
        return (self.ended_at - self.first_at) / (self.tokens - 1)


class Observer:
    """Remembers the requests of one version, and bounds them. For one event loop."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        told: Callable[[Request], None] = lambda _: None,
        *,
        most: int | None = None,
    ) -> None:
        """`told` hears of each request once it has ended; `most` are under way at once, None: any number."""
        self._most = most
        self._clock = clock
        self._told = told
        self._ended: deque[Request] = deque(maxlen=_KEPT)
        self._refused_at: deque[float] = deque(maxlen=_KEPT)
        self._under_way: dict[int, Request] = {}

    @property
    def under_way(self) -> int:
        """Requests that the engine works on."""
        return len(self._under_way)

    @property
    def full(self) -> bool:
        """Whether one more would be refused."""
        return self._most is not None and len(self._under_way) >= self._most

    def begin(self) -> Request:
        """A request goes to the engine.

        Raises:
            EngineBusyError: as many as may be are under way. It is remembered as refused, and not as failed.
        """
        if self.full:
            self.refuse()
            raise EngineBusyError("too many requests wait for this model; try again in a moment")
        request = Request(self._clock())
        self._under_way[id(request)] = request
        return request

    def refuse(self) -> None:
        """One came that may not begin."""
        self._refused_at.append(self._clock())

    def made(self, request: Request, tokens: int, *, after_first_s: float | None = None) -> None:
        """Some of its answer has come; `after_first_s` tells how long its first token was there already."""
        if after_first_s is not None:
            request.first_at = self._clock() - after_first_s
        elif request.first_at is None:
            request.first_at = self._clock()
        request.tokens += tokens

    def end(self, request: Request, *, failed: bool) -> None:
        """It has ended, or its client has gone."""
        del self._under_way[id(request)]
        request.ended_at, request.failed = self._clock(), failed
        self._ended.append(request)
        self._told(request)

    def seen(self, last_s: float) -> Seen:
        """What was had of requests that ended in the last seconds."""
        now = self._clock()
        recent = [r for r in self._ended if r.ended_at is not None and r.ended_at >= now - last_s]
        silent = [now - r.began_at for r in self._under_way.values() if r.first_at is None]
        return Seen(
            requests=len(recent),
            errors=sum(r.failed for r in recent),
            refused=sum(at >= now - last_s for at in self._refused_at),
            first_token_s=_median([r.first_token_s for r in recent]),
            token_s=_median([r.token_s for r in recent]),
            silent_s=max(silent, default=0.0),
        )


def _median(values: Ids[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


class ObservedEngine:
    """An engine whose every request an observer sees."""

    def __init__(self, engine: InferenceEngine, observer: Observer) -> None:
        self._engine = engine
        self._observer = observer

    async def generate(self, prompt_T: Ids[int], sampling: Sampling) -> AsyncGenerator[Piece, None]:
        """See `InferenceEngine`."""
        request, failed = self._observer.begin(), False
        try:
            async with aclosing(self._engine.generate(prompt_T, sampling)) as pieces:
                async for piece in pieces:
                    told_s = piece.after_first_s if isinstance(piece, Whole) else None
                    self._observer.made(request, piece.tokens, after_first_s=told_s)
                    if piece != SIGN:
                        yield piece
        except EngineError:
            failed = True
            raise
        finally:
            self._observer.end(request, failed=failed)

    async def check(self, *, timeout_s: float) -> None:
        """See `InferenceEngine`."""
        await self._engine.check(timeout_s=timeout_s)


class ObservedEncoder:
    """An encoder whose every request an observer sees; an answer comes in one piece."""

    def __init__(self, engine: EncoderEngine, observer: Observer) -> None:
        self._engine = engine
        self._observer = observer

    async def encode(self, prompts_B: Ids[Ids[int]]) -> Encoded:
        """See `EncoderEngine`."""
        request, failed = self._observer.begin(), False
        try:
            found = await self._engine.encode(prompts_B)
            self._observer.made(request, 1)
            return found
        except EngineError:
            failed = True
            raise
        finally:
            self._observer.end(request, failed=failed)

    async def check(self, *, timeout_s: float) -> None:
        """See `EncoderEngine`."""
        await self._engine.check(timeout_s=timeout_s)
