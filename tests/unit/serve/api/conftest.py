"""A tiny model behind the API, a front that counts, and the API on a port of this machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_fixtures import CountingFront, ScriptedEngine, listening, served_chat
from export_fixtures import tiny_export

from orchestrator.data.tokens.chat import CHATML
from orchestrator.export.prove import ProvenModel, load_proven
from orchestrator.serve.api.answer import Served
from orchestrator.serve.api.front import Front
from orchestrator.serve.api.models import Models, OpenFront
from orchestrator.serve.api.routes import build_app
from orchestrator.serve.engine.batching import Engine
from orchestrator.serve.engine.protocol import InferenceEngine


@pytest.fixture(scope="session")
def chat_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_export(tmp_path_factory.mktemp("chat"), chat_template=CHATML)


@pytest.fixture(scope="session")
def chatting(chat_export: Path) -> ProvenModel:
    return load_proven(chat_export)


@pytest.fixture(scope="session")
def engine(chatting: ProvenModel) -> Iterator[Engine]:
    engine = Engine(chatting, threads=1)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def served(chatting: ProvenModel, chat_export: Path, engine: Engine) -> Served:
    """The tiny model, with a chat template."""
    return served_chat(chatting, chat_export, engine)


@pytest.fixture
def front() -> CountingFront:
    return CountingFront()


@pytest.fixture
def scripted(served: Served) -> Callable[..., Served]:
    """The tiny model with another engine."""

    def make(*script: Any, engine: InferenceEngine | None = None) -> Served:
        return dataclasses.replace(served, engine=engine or ScriptedEngine(*script))

    return make


Ask = Callable[..., httpx.AsyncClient]


@pytest.fixture
def client_of() -> Ask:
    """A client of an API in this process; it knows the right key unless told otherwise."""

    def make(
        models: Models, front: Front | None = None, *, key: str | None = "right", **more: Any
    ) -> httpx.AsyncClient:
        app = build_app(models, front or OpenFront(), **more)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers)

    return make


@pytest.fixture(scope="session")
def on_a_port() -> Callable[..., Any]:
    return listening
