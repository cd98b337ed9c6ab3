"""`/v1/predict` at the gateway: a request whose version is gone goes to another replica, or to another version."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from orchestrator.serve.api.errors import ApiError
from orchestrator.serve.api.front import Caller
from orchestrator.serve.api.models import OpenFront
from orchestrator.serve.api.routes import answer_errors
from orchestrator.serve.deployment import remote
from orchestrator.serve.deployment.catalogue import Catalogue
from orchestrator.serve.deployment.gateway import predictions
from orchestrator.serve.deployment.remote import RemoteEngine
from orchestrator.serve.deployment.table import Entry, Facts
from orchestrator.serve.engine.protocol import EngineError

pytestmark = pytest.mark.anyio
ENTRY = Entry(
    model="fraud",
    version="v1",
    export="nowhere",
    share=0.75,
    app="v1",
    facts=Facts(kind="custom", fingerprint="fp", created=1),
)


class Replicas:
    """Ray Serve's handle: each call gives the next of these, and the last one for ever."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.calls = 0

    def options(self, **_: Any) -> Replicas:
        return self

    async def remote(self, body: bytes) -> Any:
        self.calls += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception) and not isinstance(answer, ApiError | EngineError):
            raise answer
        return answer


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_PAUSE_S", 0.0)


@pytest.fixture
def client_of() -> Callable[..., httpx.AsyncClient]:
    def make(*entries: Entry, **handles: Replicas) -> httpx.AsyncClient:
        catalogue = Catalogue(lambda entry: RemoteEngine(handles[entry.app]))
        catalogue.take(entries)
        app = FastAPI()

        @app.middleware("http")
        async def known(request: Any, call_next: Any) -> Any:
            request.scope.setdefault("state", {})["caller"] = Caller(key_id=None, name="", scopes=frozenset())
            return await call_next(request)

        app.include_router(predictions(catalogue, OpenFront()))
        answer_errors(app)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://localhost")

    return make


async def ask(client: httpx.AsyncClient) -> httpx.Response:
    return await client.post("/v1/predict", content=json.dumps({"columns": {"a": [1]}}))


async def test_a_replica_that_dies_is_not_noticed(client_of: Callable[..., httpx.AsyncClient]) -> None:
    replicas = Replicas(RayActorError(), RayActorError(), [0.5])
    answer = await ask(client_of(ENTRY, v1=replicas))
    assert (answer.status_code, answer.json()["predictions"], replicas.calls) == (200, [0.5], 3)


@pytest.mark.parametrize(
    "gone", [DeploymentUnavailableError("v1"), RayActorError(), EngineError("the network predicts what is no number")]
)
async def test_where_a_version_fails_the_one_beside_it_answers(
    client_of: Callable[..., httpx.AsyncClient], gone: Exception
) -> None:
    beside = replace(ENTRY, version="v2", app="v2", share=0.25)
    client = client_of(ENTRY, beside, v1=Replicas(gone), v2=Replicas([0.5]))
    answers = [await ask(client) for _ in range(20)]
    assert {(each.status_code, each.headers["x-slipway-version"]) for each in answers} == {(200, "v2")}


async def test_with_no_other_version_the_failure_is_told(client_of: Callable[..., httpx.AsyncClient]) -> None:
    answer = await ask(client_of(ENTRY, v1=Replicas(EngineError("it failed"))))
    assert (answer.status_code, answer.json()["error"]["message"]) == (500, "it failed")


async def test_a_clients_mistake_asks_nobody_else(client_of: Callable[..., httpx.AsyncClient]) -> None:
    beside = replace(ENTRY, version="v2", app="v2", share=1e-9)
    other = Replicas([0.5])
    answer = await ask(client_of(ENTRY, beside, v1=Replicas(ApiError("columns: wrong")), v2=other))
    assert (answer.status_code, other.calls) == (400, 0)


async def test_a_model_that_reads_text_predicts_no_rows(
    client_of: Callable[..., httpx.AsyncClient], tmp_path: Path
) -> None:
    Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    entry = replace(ENTRY, export=str(tmp_path), facts=replace(ENTRY.facts, kind="encoder"))
    client = client_of(entry, v1=Replicas([0.5]))
    answer = await client.post("/v1/predict", content=json.dumps({"model": "fraud", "columns": {"a": [1]}}))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "wrong_kind_of_model")


async def test_rows_are_copied_to_the_shadow(client_of: Callable[..., httpx.AsyncClient]) -> None:
    shadow = replace(ENTRY, version="v2", app="v2", share=0.0, shadow=1.0)
    copies = Replicas(EngineError("it failed"))
    answer = await ask(client_of(replace(ENTRY, share=1.0), shadow, v1=Replicas([0.5]), v2=copies))
    assert (answer.status_code, answer.headers["x-slipway-version"]) == (200, "v1")
    assert copies.calls == 1
