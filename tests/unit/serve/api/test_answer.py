"""Where a version fails before anything was told, the one beside it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_fixtures import ScriptedEngine, served_chat
from export_fixtures import tiny_export

from orchestrator.export.prove import load_proven
from orchestrator.serve.api.answer import Served
from orchestrator.serve.api.models import OneModel, OpenFront
from orchestrator.serve.api.routes import build_app
from orchestrator.serve.engine.protocol import EngineBusyError, EngineError, Piece

pytestmark = pytest.mark.anyio
CHAT = "{% for m in messages %}{{ m.content }}{% endfor %}"
GOOD = (Piece("yes", 1), Piece("!", 1, "stop"))
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "def "},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "def "}]},
}


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Served]:
    export: Path = tiny_export(tmp_path_factory.mktemp("second"), chat_template=CHAT)
    proven = load_proven(export)

    def make(name: str, *script: Piece | Exception) -> Served:
        return replace(served_chat(proven, export, ScriptedEngine(*script)), version=name)

    return make


async def ask(served: Served, path: str, *, stream: bool) -> httpx.Response:
    transport = httpx.ASGITransport(build_app(OneModel(served), OpenFront()), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return await client.post(path, json={"model": "tiny", "stream": stream, **ROUTES[path]})


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("failure", [EngineError("no numbers"), EngineBusyError("busy")])
async def test_the_other_one_answers(
    version: Callable[..., Served], path: str, stream: bool, failure: EngineError
) -> None:
    good = version("v1", *GOOD)
    answer = await ask(replace(version("v2", failure), instead=lambda: good), path, stream=stream)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-slipway-version"] == "v1"
    assert "yes" in answer.text
    assert "error" not in answer.text


async def test_what_was_told_already_is_not_told_again(version: Callable[..., Served]) -> None:
    begun = version("v2", Piece("no", 1), EngineError("broken"))
    good = version("v1", *GOOD)
    answer = await ask(replace(begun, instead=lambda: good), "/v1/completions", stream=True)
    assert "no" in answer.text
    assert "yes" not in answer.text
    assert "broken" in answer.text


async def test_both_may_fail(version: Callable[..., Served]) -> None:
    worse = version("v1", EngineError("neither do I"))
    answer = await ask(
        replace(version("v2", EngineError("I do not")), instead=lambda: worse), "/v1/completions", stream=False
    )
    assert (answer.status_code, answer.json()["error"]["message"]) == (500, "neither do I")
