"""The API around a tiny model: a front that counts, an engine with a script, and a port of this machine."""

from __future__ import annotations

import asyncio
import base64
import socket
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from orchestrator.export.prove import ProvenModel
from orchestrator.serve.api.answer import Served
from orchestrator.serve.api.errors import ApiError
from orchestrator.serve.api.feedback import Feedback
from orchestrator.serve.api.front import Caller, UsageRow
from orchestrator.serve.api.listener import PatientProtocol
from orchestrator.serve.api.template import read_chat_format
from orchestrator.serve.engine.protocol import EngineError, InferenceEngine, Piece, Sampling

_BASIC = "Basic " + base64.b64encode(b"any:right").decode()


@dataclass
class Counted:
    """One admission, and how it was settled."""

    asked: dict[str, Any]
    settled: list[dict[str, Any]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=lambda: {"x-ratelimit-limit-requests": "9"})

    async def settle(self, **used: Any) -> None:
        await asyncio.sleep(0)
        self.settled.append(used)


class CountingFront:
    """Knows the key "right", admits unless told otherwise, and remembers all."""

    def __init__(self, *, keeps_text: bool = False) -> None:
        self.keeps_text = keeps_text
        self.admissions: list[Counted] = []
        self.opinions: list[Feedback] = []
        self.refuses: ApiError | None = None
        self.models: frozenset[str] | None = None
        self.forbids: ApiError | None = None

    async def authenticate(self, authorization: str | None) -> Caller:
        if authorization not in ("Bearer right", _BASIC):
            raise ApiError("Incorrect API key provided", status=401, code="invalid_api_key")
        return Caller(key_id="k1", name="laptop", scopes=frozenset({"generate"}), models=self.models)

    async def require(self, caller: Caller, **asked: Any) -> None:
        if self.forbids is not None:
            raise self.forbids

    async def admit(self, caller: Caller, **asked: Any) -> Counted:
        if self.refuses is not None:
            raise self.refuses
        self.admissions.append(Counted(asked))
        return self.admissions[-1]

    async def feedback(self, caller: Caller, feedback: Feedback) -> None:
        self.opinions.append(feedback)

    async def usage(self, caller: Caller, *, key_id: str | None, day: str | None) -> list[UsageRow]:
        return [
            UsageRow(
                key_id=key_id,
                name=caller.name,
                model="tiny",
                version="7",
                day=day or "2030-01-01",
                requests=1,
                prompt_tokens=2,
                completion_tokens=3,
                cost=None,
            )
        ]


class ScriptedEngine:
    """Gives the pieces of a script; an exception in it is raised, a number waited for in seconds."""

    def __init__(self, *script: Piece | Exception | float) -> None:
        self.script = script
        self.paused, self.left = asyncio.Event(), asyncio.Event()
        self.asked: list[Sampling] = []

    async def generate(self, prompt_T: object, sampling: Sampling) -> AsyncGenerator[Piece, None]:
        self.asked.append(sampling)
        try:
            for each in self.script:
                if isinstance(each, Exception):
                    raise each
                if isinstance(each, Piece):
                    yield each
                else:
                    self.paused.set()
                    await asyncio.sleep(each)
        finally:
            self.left.set()

    async def check(self, *, timeout_s: float) -> None:
        raise EngineError("stuck")


def served_chat(proven: ProvenModel, export: Path, engine: InferenceEngine) -> Served:
    """A tiny model with a chat template behind its API."""
    return Served(
        name="tiny",
        engine=engine,
        tokenizer=proven.tokenizer,
        eos_id=proven.eos_id,
        vocab_size=proven.allowed_size,
        context=proven.config.context,
        max_tokens=48,
        fingerprint="fp_test",
        created=1_700_000_000,
        version="7",
        chat=read_chat_format(export, proven.tokenizer),
    )


@contextmanager
def listening(app: ASGIApp, *, headers_s: float = 10.0) -> Iterator[int]:
    """The API on a free port of the loopback, as a server of ours has it."""

    class Protocol(PatientProtocol):
        pass

    Protocol.headers_s = headers_s
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, http=Protocol, log_level="error", lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
        thread.start()
        try:
            while not server.started:
                time.sleep(0.005)
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()
