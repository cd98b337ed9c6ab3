"""What a file of Ray Serve's names, on a real Ray: the gateway behind Serve's own proxy, and the version behind it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from export_fixtures import tiny_export
from harness import free_port
from ray import serve

from orchestrator.cluster.connect import Session
from orchestrator.job import Serve
from orchestrator.serve.accounts import keys
from orchestrator.serve.accounts.database import Database
from orchestrator.serve.api.limits import Limits
from orchestrator.serve.deployment import config_app, fleet
from orchestrator.serve.deployment.table import GATEWAY
from orchestrator.serve.host.processes import HOST

ASKED = {"model": "tiny", "prompt": "def ", "max_tokens": 6, "ignore_eos": True}


@pytest.fixture
def accounts(tmp_path: Path) -> str:
    return str(tmp_path / "accounts.sqlite")


@pytest.fixture
def key(accounts: str) -> str:
    database = Database(accounts)
    with database.transaction() as session:
        _, secret = keys.create(session, keys.NewKey(name="ana"))
    database.close()
    return secret


@pytest.fixture
def origin(session: Session, tmp_path: Path, accounts: str, key: str) -> Iterator[str]:
    """The service as KubeRay would have Ray Serve start it."""
    session.connect()
    port, export = free_port(), tiny_export(tmp_path / "run")
    arguments = {
        "store": str(tmp_path / "store"),
        "run": str(export),
        "application": "tiny-v1",
        "settings": Serve(accounts=accounts).model_dump(mode="json"),
    }
    serve.start(proxy_location="HeadOnly", http_options={"host": HOST, "port": port})
    try:
        serve.run(config_app.gateway(arguments), name=GATEWAY, route_prefix="/")
        serve.run(config_app.version(arguments), name="tiny-v1", route_prefix=None)
        yield f"http://{HOST}:{port}"
    finally:
        fleet.shut_down()


def test_it_answers_who_has_a_key_and_reads_no_body_that_is_too_large(origin: str, key: str) -> None:
    with httpx.Client(base_url=origin, timeout=60, headers={"authorization": f"Bearer {key}"}) as client:
        answer = client.post("/v1/completions", json=ASKED)
        assert (answer.status_code, answer.json()["usage"]["completion_tokens"]) == (200, 6), answer.text
        streamed = client.post("/v1/completions", json={**ASKED, "stream": True})
        assert streamed.text.endswith("data: [DONE]\n\n")
        assert client.post("/v1/completions", content=bytes(2 * Limits().body_bytes)).status_code == 413
        assert client.get("/-/healthz").status_code == 200  # what KubeRay's operator asks
    assert httpx.post(f"{origin}/v1/completions", json=ASKED, timeout=60).status_code == 401
