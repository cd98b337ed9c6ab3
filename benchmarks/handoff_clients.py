"""The clients of the benchmark `handoff`: streams all the time, and one that asks until another version answers."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

VERSION = "x-slipway-version"
"""The header in which a service tells its version."""
ASK_EVERY_S = 0.02
LIMIT_S = 300.0
STREAMED = 48
"""Tokens of a stream."""
PROMPT = list(range(5, 21))


@dataclass(frozen=True)
class Service:
    """Where completions are asked for."""

    url: str
    model: str

    def body(self, tokens: int, *, stream: bool) -> dict[str, Any]:
        """A completion of so many tokens."""
        wanted = {"model": self.model, "prompt": PROMPT, "max_tokens": tokens, "stream": stream}
        return {**wanted, "ignore_eos": True, "temperature": 0}

    def version(self, client: httpx.Client) -> str | None:
        """The version of a token that was asked for alone; None where the service did not answer."""
        try:
            answer = client.post(self.url, json=self.body(1, stream=False))
        except httpx.HTTPError:
            return None
        return answer.headers[VERSION] if answer.status_code == httpx.codes.OK else None

    def wait_for(self, *, other_than: str | None) -> tuple[str, float]:
        """The next version, and the moment of its first token.

        Raises:
            TimeoutError: none came.
        """
        deadline = time.monotonic() + LIMIT_S
        with httpx.Client(timeout=LIMIT_S) as client:
            while (began := time.monotonic()) < deadline:
                found = self.version(client)
                if found is not None and found != other_than:
                    return found, time.monotonic()
                time.sleep(max(0.0, began + ASK_EVERY_S - time.monotonic()))
        raise TimeoutError(f"{self.url} had no other version than {other_than} in {LIMIT_S:g} s")


@dataclass
class Streams:
    """What came of streams that were asked for all the time."""

    answered: int = 0
    failures: list[str] = field(default_factory=list)
    waits: list[tuple[float, float]] = field(default_factory=list)
    """The moment at which a first token came, and the seconds since it was asked for."""
    gaps: list[tuple[float, float]] = field(default_factory=list)
    """The moment at which a later token came, and the seconds since the one before it."""

    def ask(self, client: httpx.Client, service: Service) -> None:
        """One stream."""
        last, tokens, text = time.monotonic(), 0, ""
        try:
            with client.stream("POST", service.url, json=service.body(STREAMED, stream=True)) as answer:
                for line in answer.iter_lines():
                    if not line.startswith("data:"):
                        continue
                    now, text = time.monotonic(), line
                    (self.gaps if tokens else self.waits).append((now, now - last))
                    last, tokens = now, tokens + 1
        except httpx.HTTPError as error:
            self.failures.append(repr(error))
            return
        if answer.status_code == httpx.codes.OK and text == "data: [DONE]" and tokens > 1:
            self.answered += 1
        else:
            self.failures.append(f"{answer.status_code} after {tokens} tokens: {text[:200]}")


def longest_ms(spans: list[tuple[float, float]], begin: float, end: float) -> float:
    """Of those that ended in between."""
    return max((1e3 * span for at, span in spans if begin <= at <= end), default=0.0)


@contextlib.contextmanager
def streaming(service: Service, count: int) -> Iterator[Streams]:
    """So many streams under way, as long as the block lasts."""
    found, stop = Streams(), threading.Event()

    def ask() -> None:
        with httpx.Client(timeout=LIMIT_S) as client:
            while not stop.is_set():
                failed = len(found.failures)
                found.ask(client, service)
                if len(found.failures) > failed:
                    stop.wait(ASK_EVERY_S)

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        stop.set()
        for thread in threads:
            thread.join()
