"""Every route asks for a key; every request has an id and a line in the log, and settles what it was admitted for."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from orchestrator.serve.api.answer import Served
from orchestrator.serve.api.errors import ApiError
from orchestrator.serve.api.limits import Limits
from orchestrator.serve.api.models import OneModel, OpenFront
from orchestrator.serve.api.routes import build_app
from orchestrator.serve.engine.protocol import EngineBusyError, EngineError, Piece

pytestmark = pytest.mark.anyio
BODY = {"model": "tiny", "prompt": "sentinel", "max_tokens": 4, "seed": 1}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "sentinel"}], "max_tokens": 4, "seed": 1}
ROUTES = [
    ("GET", "/"),
    ("GET", "/docs"),
    ("GET", "/openapi.json"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/tiny"),
    ("GET", "/v1/whoami"),
    ("GET", "/v1/usage"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/classify"),
    ("POST", "/v1/feedback"),
    ("GET", "/nothing"),
    ("PUT", "/v1/models"),
]


async def until(true: Callable[[], Any]) -> None:
    for _ in range(500):
        if true():
            return
        await asyncio.sleep(0.01)
    raise TimeoutError


def test_the_list_of_routes_is_whole(served: Served) -> None:
    paths = {path.replace("{name}", "tiny") for path in build_app(OneModel(served), OpenFront()).openapi()["paths"]}
    assert paths - {"/healthz"} == {path for _, path in ROUTES if path.startswith("/v1")}


@pytest.mark.parametrize("key", [None, "wrong", ""])
@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_no_route_answers_without_a_key(
    client_of: Any, served: Served, front: Any, method: str, path: str, key: str | None
) -> None:
    async with client_of(OneModel(served), front, key=key) as client:
        answer = await client.request(method, path, json=BODY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert front.admissions == []


async def test_health_needs_no_key(client_of: Any, served: Served, front: Any) -> None:
    async with client_of(OneModel(served), front, key=None) as client:
        assert (await client.get("/healthz")).json() == {"status": "ok"}


async def test_a_browser_is_asked_for_the_key(client_of: Any, served: Served, front: Any) -> None:
    async with client_of(OneModel(served), front, key=None) as client:
        answer = await client.get("/", headers={"accept": "text/html,*/*"})
    assert answer.headers["www-authenticate"].startswith("Basic realm=")


async def test_other_sites_pages_may_not_use_the_browsers_key(client_of: Any, served: Served, front: Any) -> None:
    async with client_of(OneModel(served), front) as client:
        for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)):
            answer = await client.post("/v1/completions", json=BODY, headers={"sec-fetch-site": site})
            assert answer.status_code == status


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost", 200), ("127.0.0.1:8000", 200), ("[::1]:8000", 200), ("LOCALHOST:1", 200), ("evil.example", 403)],
)
async def test_without_keys_other_names_than_loopbacks_are_refused(
    client_of: Any, served: Served, front: Any, host: str, status: int
) -> None:
    async with client_of(OneModel(served)) as client:
        assert (await client.get("/v1/models", headers={"host": host})).status_code == status
    async with client_of(OneModel(served), front) as client:
        assert (await client.get("/v1/models", headers={"host": host})).status_code == 200


async def test_a_request_id_comes_back_and_is_made_where_there_is_none(
    client_of: Any, served: Served, front: Any
) -> None:
    async with client_of(OneModel(served), front) as client:
        given = await client.get("/v1/models", headers={"x-request-id": "my-id.1"})
        assert given.headers["x-request-id"] == "my-id.1"
        for bad in ("", "a b", "x" * 129, "é"):
            made = await client.get("/v1/models", headers={"x-request-id": bad.encode()})
            assert made.headers["x-request-id"].startswith("req_")
        unknown = await client.get("/nothing")
        assert unknown.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), [("/v1/completions", BODY), ("/v1/chat/completions", CHAT)])
async def test_an_answer_is_admitted_and_settled_once(
    client_of: Any, served: Served, front: Any, path: str, body: dict[str, Any], stream: bool
) -> None:
    async with client_of(OneModel(served), front) as client:
        answer = await client.post(path, json={**body, "n": 2, "stream": stream})
    assert answer.status_code == 200, answer.text
    (admission,) = front.admissions
    prompt_tokens = admission.asked.pop("prompt_tokens")
    assert admission.asked == {"scope": "generate", "model": "tiny", "version": "7", "max_tokens": 8}
    (settled,) = admission.settled
    told = settled.pop("answered")
    assert settled == {"prompt_tokens": prompt_tokens, "completion_tokens": 8, "failed": False}
    assert told.id in answer.text
    assert (told.prompts, told.completions) == (None, None)
    assert (answer.headers["x-ratelimit-limit-requests"], answer.headers["x-slipway-version"]) == ("9", "7")


@pytest.mark.parametrize("stream", [False, True])
async def test_texts_are_handed_over_where_the_job_opted_in(
    client_of: Any, served: Served, front: Any, stream: bool
) -> None:
    front.keeps_text = True
    async with client_of(OneModel(served), front) as client:
        plain = (await client.post("/v1/completions", json={**BODY, "n": 2})).json()
        await client.post("/v1/completions", json={**BODY, "n": 2, "stream": stream, "echo": True})
        await client.post("/v1/chat/completions", json={**CHAT, "stream": stream})
    text, chat = (each.settled[0]["answered"] for each in front.admissions[1:])
    assert text.prompts == ("sentinel",)
    assert text.completions == tuple(choice["text"] for choice in plain["choices"])
    assert json.loads(chat.prompts[0]) == CHAT["messages"]


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_not_admitted_reaches_no_engine(
    client_of: Any, scripted: Callable[..., Served], front: Any, stream: bool
) -> None:
    model = scripted(Piece("x", 1, "stop"))
    front.refuses = ApiError("Rate limit reached", status=429, code="rate_limit_exceeded", headers={"retry-after": "7"})
    async with client_of(OneModel(model), front) as client:
        answer = await client.post("/v1/completions", json={**BODY, "stream": stream})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
    assert model.engine.asked == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("script", "status", "made"),
    [
        ((EngineBusyError("3 wait already"),), 429, 0),
        ((EngineError("out of memory"),), 500, 0),
        ((KeyError("secret"),), 500, 0),
        ((Piece("a", 3), EngineError("out of memory")), 500, 3),
    ],
)
async def test_what_fails_is_settled_once_with_what_was_made(
    client_of: Any,
    scripted: Callable[..., Served],
    front: Any,
    script: tuple[Any, ...],
    status: int,
    made: int,
    stream: bool,
) -> None:
    async with client_of(OneModel(scripted(*script)), front) as client:
        answer = await client.post("/v1/completions", json={**BODY, "stream": stream})
    begun = stream and made
    assert answer.status_code == (200 if begun else status)
    assert '"error"' in answer.text
    assert "secret" not in answer.text
    if status == 429:
        assert answer.headers["retry-after"] == "1"
    (settled,) = front.admissions[0].settled
    assert (settled["completion_tokens"], settled["answered"]) == (made, None)
    assert settled["failed"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_past_its_deadline_ends(
    client_of: Any, scripted: Callable[..., Served], front: Any, stream: bool
) -> None:
    model = scripted(Piece("a", 1), 30.0)
    async with client_of(OneModel(model), front, limits=Limits(total_s=0.05)) as client:
        answer = await client.post("/v1/completions", json={**BODY, "stream": stream})
    assert answer.status_code == (200 if stream else 504)
    assert '"code":"timeout"' in answer.text.replace(" ", "")
    assert model.engine.left.is_set()  # type: ignore[attr-defined]
    assert [used["completion_tokens"] for used in front.admissions[0].settled] == [1]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_is_settled_with_what_it_had(
    client_of: Any, scripted: Callable[..., Served], front: Any, stream: bool
) -> None:
    model = scripted(Piece("a", 2), 30.0)
    async with client_of(OneModel(model), front) as client:
        task = asyncio.create_task(client.post("/v1/completions", json={**BODY, "stream": stream}))
        await asyncio.wait_for(model.engine.paused.wait(), 30)  # type: ignore[attr-defined]
        task.cancel()
        await asyncio.wait_for(model.engine.left.wait(), 5)  # type: ignore[attr-defined]
        await asyncio.gather(task, return_exceptions=True)
        await until(lambda: front.admissions[0].settled)
    assert [used["completion_tokens"] for used in front.admissions[0].settled] == [2]


async def test_a_key_has_so_many_streams_at_once(client_of: Any, scripted: Callable[..., Served], front: Any) -> None:
    model = scripted(Piece("a", 1), 0.3, Piece("b", 1, "stop"))
    async with client_of(OneModel(model), front, limits=Limits(requests_per_key=2)) as client:
        asked = [client.post("/v1/completions", json={**BODY, "stream": True}) for _ in range(5)]
        answers: list[httpx.Response] = await asyncio.gather(*asked)
        assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429, 429]
        assert (await client.post("/v1/completions", json=BODY)).status_code == 200


async def test_the_log_has_a_line_for_each_request_and_no_text(
    client_of: Any, served: Served, front: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with client_of(OneModel(served), front) as client:
        await client.post("/v1/completions?note=sentinel", json=BODY, headers={"x-request-id": "a"})
        await client.get("/sentinel", headers={"x-request-id": "b"})
        await client.post("/v1/completions", json={**BODY, "prompt": {"sentinel": 1}}, headers={"x-request-id": "c"})
        await client.post("/v1/completions", json=BODY, headers={"authorization": "Bearer sentinel"})
    lines = [json.loads(each.getMessage()) for each in caplog.records if each.name == "slipway.access"]
    first = {key: value for key, value in lines[0].items() if not key.endswith("ms")}
    assert first.pop("prompt_tokens") > 0
    assert first == {
        "id": "a",
        "method": "POST",
        "path": "/v1/completions",
        "status": 200,
        "key": "k1",
        "model": "tiny",
        "version": "7",
        "completion_tokens": 4,
    }
    assert [line["status"] for line in lines] == [200, 404, 400, 401]
    assert all(line["ms"] >= line["first_byte_ms"] > 0 for line in lines)
    ours = [each for each in caplog.records if not each.name.startswith(("httpx", "asyncio"))]
    assert "sentinel" not in "".join(each.getMessage() for each in ours)


async def test_a_key_sees_the_models_it_may_ask(client_of: Any, served: Served, front: Any) -> None:
    async with client_of(OneModel(served), front) as client:
        assert [card["id"] for card in (await client.get("/v1/models")).json()["data"]] == ["tiny"]
        front.models = frozenset({"other"})
        assert (await client.get("/v1/models")).json()["data"] == []
        assert (await client.get("/v1/models/tiny")).status_code == 404
        told = (await client.post("/v1/completions", json=BODY)).json()["error"]
        assert told["message"] == "The model `tiny` does not exist; this service has none"


@pytest.mark.parametrize("route", ["completions", "chat/completions", "embeddings", "classify"])
async def test_what_a_key_is_not_for_is_said_before_anything_of_the_model(
    client_of: Any, served: Served, front: Any, route: str
) -> None:
    front.forbids = ApiError("other scopes", status=403, code="insufficient_scope")
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}]} if "chat" in route else {"input": "a"}
    async with client_of(OneModel(served), front) as client:
        asked = BODY if route == "completions" else {**body, "model": "tiny"}
        answer = await client.post(f"/v1/{route}", json=asked)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "insufficient_scope")


async def test_feedback_and_usage_go_to_the_accounts(client_of: Any, served: Served, front: Any) -> None:
    given = {"id": "cmpl-1", "rating": "down", "correction": "better", "comment": "short", "consent": True}
    async with client_of(OneModel(served), front) as client:
        answer = await client.post("/v1/feedback", json=given)
        assert answer.json() == {"object": "feedback", "id": "cmpl-1"}
        assert front.opinions[0].model_dump() == {**given, "choice": 0}
        assert (await client.post("/v1/feedback", json={"id": "x", "rating": 4.5})).status_code == 200
        told = (await client.post("/v1/feedback", json={"id": "x", "rating": "so so"})).json()["error"]
        assert told["message"] == "rating: must be up, down or a number, got 'so so'"
        for wrong in (
            {"id": "x", "rating": True},
            {"rating": "up"},
            {"id": "x", "rating": "so so"},
            {"id": "x", "rating": "up", "stars": 5},
        ):
            assert (await client.post("/v1/feedback", json=wrong)).status_code == 400
        usage = (await client.get("/v1/usage", params={"key": "k9", "day": "2030-02-03"})).json()
        assert (usage["data"][0]["key_id"], usage["data"][0]["day"]) == ("k9", "2030-02-03")
        for no_day in ("yesterday", "2030-13-01", "20300101"):
            assert (await client.get("/v1/usage", params={"day": no_day})).status_code == 400
        assert (await client.get("/v1/whoami")).json() == {"key_id": "k1", "name": "laptop", "scopes": ["generate"]}


async def test_a_service_without_accounts_says_so(client_of: Any, served: Served) -> None:
    async with client_of(OneModel(served)) as client:
        assert (await client.get("/v1/usage")).json()["error"]["code"] == "no_accounts"
        answer = await client.post("/v1/feedback", json={"id": "x", "rating": "up"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_accounts")
        assert (await client.get("/v1/whoami")).json()["key_id"] is None


async def test_pages_load_nothing_from_elsewhere(client_of: Any, served: Served) -> None:
    async with client_of(OneModel(served)) as client:
        for path in ("/", "/docs"):
            page = await client.get(path)
            assert page.headers["content-type"].startswith("text/html")
            policy = page.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "http" not in page.text.replace("http-equiv", "")


async def test_a_version_of_its_own_is_told(client_of: Any, served: Served, front: Any) -> None:
    async with client_of(OneModel(dataclasses.replace(served, version="8")), front) as client:
        answer = await client.post("/v1/completions", json=BODY)
    assert answer.headers["x-slipway-version"] == "8"
