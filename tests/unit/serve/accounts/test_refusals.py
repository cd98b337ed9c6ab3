"""Every route of the service, with every key that should not open it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from orchestrator.serve.accounts import keys
from orchestrator.serve.accounts.audit import AuditLog
from orchestrator.serve.accounts.database import Database
from orchestrator.serve.accounts.front import Accounts, Policy
from orchestrator.serve.accounts.keys import NewKey
from orchestrator.serve.api.completions import ModelCard
from orchestrator.serve.api.errors import model_not_found
from orchestrator.serve.api.routes import build_app

pytestmark = pytest.mark.anyio


class NoModels:
    """Nobody gets as far as a model."""

    def choose(self, name: str) -> Any:
        raise model_not_found(name)

    def cards(self) -> list[ModelCard]:
        return [ModelCard(id="m", created=1)]

    async def check(self, *, timeout_s: float) -> None:
        """All is well."""


@pytest.fixture
async def front(sqlite: Database, tmp_path: Path) -> AsyncIterator[Accounts]:
    made = Accounts(sqlite, AuditLog(tmp_path / "audit.jsonl"), Policy())
    yield made
    await made.close()


def paths(app: FastAPI) -> list[tuple[str, str]]:
    described = app.openapi()["paths"].items()
    found = [(method.upper(), path.replace("{name}", "m")) for path, methods in described for method in methods]
    unlisted = ("/", "/docs", "/openapi.json", "/no/such/route")
    return [*found, *(("GET", path) for path in unlisted), ("DELETE", "/v1/models")]


async def test_nothing_but_the_health_check_opens_without_a_living_key(
    front: Accounts, sqlite: Database, clock: Any
) -> None:
    with sqlite.transaction() as session:
        _, good = keys.create(session, NewKey(name="good"))
        _, expired = keys.create(session, NewKey(name="old", expires_at=clock.now - 1))
        gone, revoked = keys.create(session, NewKey(name="gone"))
        keys.revoke(session, gone.id)
    app = build_app(NoModels(), front)
    asked = paths(app)
    assert {("POST", "/v1/completions"), ("GET", "/v1/usage"), ("POST", "/v1/feedback")} <= set(asked)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://slipway") as client:
        for method, path in asked:
            for secret in (None, "sk-wrong", expired, revoked):
                headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
                answer = await client.request(method, path, headers=headers, content=b"{}")
                expected = 200 if path == "/healthz" else 401
                assert answer.status_code == expected, (method, path, secret)
                if expected == 401:
                    assert answer.json()["error"]["code"].endswith("_api_key")
                    assert "WWW-Authenticate" in answer.headers
        models = await client.get("/v1/models", headers={"Authorization": f"Bearer {good}"})
        assert [card["id"] for card in models.json()["data"]] == ["m"]


async def test_the_key_of_one_scope_does_not_see_the_usage_of_others(front: Accounts, sqlite: Database) -> None:
    with sqlite.transaction() as session:
        _, ana = keys.create(session, NewKey(name="ana"))
        root, admin = keys.create(session, NewKey(name="root", scopes=frozenset({"admin"})))
    transport = httpx.ASGITransport(app=build_app(NoModels(), front))
    async with httpx.AsyncClient(transport=transport, base_url="http://slipway") as client:
        answers = [
            await client.get("/v1/usage", params={"key": root.id}, headers={"Authorization": f"Bearer {secret}"})
            for secret in (ana, admin)
        ]
    assert [answer.status_code for answer in answers] == [403, 200]
