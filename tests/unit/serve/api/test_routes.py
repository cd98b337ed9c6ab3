"""The HTTP surface over a real engine on a tiny model, without Ray."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from model.logprob import TokenLogprob
from orchestrator.export.prove import ProvenModel
from orchestrator.serve.api.answer import Served
from orchestrator.serve.api.models import OneModel, OpenFront
from orchestrator.serve.api.routes import MAX_BODY_BYTES, build_app
from orchestrator.serve.engine.batching import Engine
from orchestrator.serve.engine.protocol import EngineError, InferenceEngine, Piece, Sampling

pytestmark = pytest.mark.anyio
BODY = {"model": "tiny", "prompt": "def ", "seed": 1, "logit_bias": {"0": -100}}
"""Never ends by itself: random weights like the end of the text as well as any token."""


def served(engine: InferenceEngine, proven: ProvenModel) -> Served:
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
    )


@pytest.fixture(scope="module")
def plain_engine(proven: ProvenModel) -> Iterator[Engine]:
    engine = Engine(proven, threads=1)
    yield engine
    engine.close()


def client_of(service: Served) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(build_app(OneModel(service), OpenFront()), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost")


@pytest.fixture
async def client(plain_engine: Engine, proven: ProvenModel) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(served(plain_engine, proven)) as client:
        yield client


async def complete(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await client.post("/v1/completions", json={**BODY, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


async def events(client: httpx.AsyncClient, **fields: Any) -> list[dict[str, Any]]:
    """The JSON of a stream's events, after checking that it ends as it must."""
    body = {**BODY, "stream": True, **fields}
    answer = await client.post("/v1/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *lines, done, end = answer.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(line.removeprefix("data: ")) for line in lines]


async def test_a_completion(client: httpx.AsyncClient, proven: ProvenModel) -> None:
    answer = await complete(client, max_tokens=5)
    assert answer["id"].startswith("cmpl-")
    assert (answer["object"], answer["model"], answer["system_fingerprint"]) == ("text_completion", "tiny", "fp_test")
    (choice,) = answer["choices"]
    assert (choice["index"], choice["logprobs"], choice["finish_reason"]) == (0, None, "length")
    prompt_tokens = len(proven.tokenizer.encode("def ").ids)
    assert answer["usage"] == {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": 5,
        "total_tokens": prompt_tokens + 5,
    }


async def test_16_tokens_unless_asked(client: httpx.AsyncClient) -> None:
    assert (await complete(client))["usage"]["completion_tokens"] == 16


async def test_the_default_shrinks_to_what_the_context_leaves(client: httpx.AsyncClient) -> None:
    assert (await complete(client, prompt=[5] * 60))["usage"]["completion_tokens"] == 4


async def test_choices_are_in_the_order_of_prompts_and_draw_apart(client: httpx.AsyncClient) -> None:
    answer = await complete(client, prompt=["def ", "class "], n=3, max_tokens=12)
    texts = [choice["text"] for choice in answer["choices"]]
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    assert len(set(texts)) == 6
    assert answer["usage"]["completion_tokens"] == 72
    first = await complete(client, max_tokens=12)
    assert texts[0] == first["choices"][0]["text"]


async def test_the_same_seed_gives_the_same_answer(client: httpx.AsyncClient) -> None:
    once, again = [await complete(client, n=2, max_tokens=12) for _ in range(2)]
    assert once["choices"] == again["choices"]
    assert (await complete(client, n=2, max_tokens=12, seed=2))["choices"] != once["choices"]


async def test_text_and_token_ids_are_the_same_prompt(client: httpx.AsyncClient, proven: ProvenModel) -> None:
    ids = proven.tokenizer.encode("héllo 🚢").ids
    by_text, by_ids = await complete(client, prompt="héllo 🚢"), await complete(client, prompt=ids)
    assert by_text["choices"] == by_ids["choices"]
    assert by_text["usage"] == by_ids["usage"]


async def test_text_cannot_spell_the_end_of_text(client: httpx.AsyncClient) -> None:
    assert (await complete(client, prompt="<|endoftext|>"))["usage"]["prompt_tokens"] > 1
    assert (await complete(client, prompt=""))["usage"]["prompt_tokens"] == 1
    assert (await complete(client, prompt=""))["choices"] == (await complete(client, prompt=[0]))["choices"]


async def test_echo_puts_the_prompt_before_the_completion(client: httpx.AsyncClient) -> None:
    plain = await complete(client, prompt=["a", "b"], max_tokens=4)
    echoed = await complete(client, prompt=["a", "b"], max_tokens=4, echo=True)
    assert [c["text"] for c in echoed["choices"]] == [
        prompt + c["text"] for prompt, c in zip("ab", plain["choices"], strict=True)
    ]
    nothing = await complete(client, max_tokens=0, echo=True)
    assert (nothing["choices"][0]["text"], nothing["choices"][0]["finish_reason"]) == ("def ", "length")


@pytest.mark.parametrize("fields", [{}, {"n": 2}, {"echo": True, "prompt": ["a", "b"]}, {"stop": ["e", "🚢"]}])
async def test_a_stream_is_the_same_text_in_pieces(client: httpx.AsyncClient, fields: dict[str, Any]) -> None:
    whole = await complete(client, max_tokens=24, **fields)
    chunks = await events(client, max_tokens=24, **fields)
    for choice in whole["choices"]:
        mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert "".join(c["text"] for c in mine) == choice["text"]
        assert [c["finish_reason"] for c in mine][-1] == choice["finish_reason"]
        assert all(c["finish_reason"] is None for c in mine[:-1])
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert not any("usage" in chunk for chunk in chunks)


async def test_a_stream_ends_with_the_usage_that_was_asked_for(client: httpx.AsyncClient) -> None:
    whole = await complete(client, max_tokens=9)
    *chunks, last = await events(client, max_tokens=9, stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]


async def test_logprobs_of_a_completion(client: httpx.AsyncClient, proven: ProvenModel) -> None:
    (choice,) = (await complete(client, prompt="é🚢", max_tokens=30, logprobs=2))["choices"]
    told = choice["logprobs"]
    assert list(told) == ["tokens", "token_logprobs", "top_logprobs", "text_offset"]
    assert {len(values) for values in told.values()} == {30}
    assert told["text_offset"][0] == 2  # from the prompt's beginning, as OpenAI has it
    assert told["text_offset"] == sorted(told["text_offset"])
    for token, logprob, top in zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True):
        assert top[token] == logprob < 0
        assert len(top) in (2, 3)
    by_ids = await complete(client, prompt=proven.tokenizer.encode("é🚢").ids, max_tokens=30, logprobs=2)
    assert by_ids["choices"] == [choice]


async def test_an_echo_has_the_logprobs_of_the_prompt(client: httpx.AsyncClient) -> None:
    (alone,) = (await complete(client, max_tokens=0, logprobs=1, echo=True))["choices"]
    (more,) = (await complete(client, max_tokens=1, logprobs=1, echo=True))["choices"]
    (plain,) = (await complete(client, max_tokens=1, logprobs=1))["choices"]
    assert alone["text"] == "".join(alone["logprobs"]["tokens"]) == "def "
    assert (alone["logprobs"]["token_logprobs"][0], alone["logprobs"]["top_logprobs"][0]) == (None, None)
    assert None not in alone["logprobs"]["token_logprobs"][1:]
    assert alone["logprobs"]["text_offset"][0] == 0
    for name, values in more["logprobs"].items():
        assert values == alone["logprobs"][name] + plain["logprobs"][name]


async def test_logprobs_without_alternatives_are_of_the_tokens_alone(client: httpx.AsyncClient) -> None:
    (choice,) = (await complete(client, max_tokens=3, logprobs=0))["choices"]
    told = choice["logprobs"]
    assert told["top_logprobs"] == [
        {token: logprob} for token, logprob in zip(told["tokens"], told["token_logprobs"], strict=True)
    ]
    (nothing,) = (await complete(client, max_tokens=0, logprobs=0))["choices"]
    assert set(map(tuple, nothing["logprobs"].values())) == {()}


async def test_an_empty_prompt_has_a_token_without_text(client: httpx.AsyncClient) -> None:
    (choice,) = (await complete(client, prompt="", max_tokens=1, logprobs=0, echo=True))["choices"]
    assert (choice["logprobs"]["tokens"][0], choice["logprobs"]["text_offset"]) == ("<|endoftext|>", [0, 0])


@pytest.mark.parametrize(
    "fields",
    [{}, {"n": 2, "echo": True}, {"echo": True, "prompt": ["", [0, 5]]}, {"stop": ["e", "🚢"]}, {"max_tokens": 0}],
)
async def test_a_stream_has_the_same_logprobs(client: httpx.AsyncClient, fields: dict[str, Any]) -> None:
    fields = {"max_tokens": 24, "logprobs": 3, **fields}
    whole = await complete(client, **fields)
    chunks = await events(client, **fields)
    for choice in whole["choices"]:
        mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert "".join(c["text"] for c in mine) == choice["text"]
        for name, values in choice["logprobs"].items():
            assert [value for c in mine for value in c["logprobs"][name]] == values
        end = sum(len(c["text"]) for c in mine) + (0 if fields.get("echo") else len("def "))
        if choice["finish_reason"] == "stop":
            assert all(offset < end for offset in choice["logprobs"]["text_offset"])


async def test_models(client: httpx.AsyncClient) -> None:
    card = {"id": "tiny", "object": "model", "created": 1_700_000_000, "owned_by": "slipway"}
    assert (await client.get("/v1/models")).json() == {"object": "list", "data": [card]}
    assert (await client.get("/v1/models/tiny")).json() == card
    missing = await client.get("/v1/models/org/other")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


async def test_health(client: httpx.AsyncClient) -> None:
    assert (await client.get("/healthz")).json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("fields", "status", "param", "code"),
    [
        ({"model": "gpt-4"}, 404, "model", "model_not_found"),
        ({"temperature": 3}, 400, "temperature", None),
        ({"max_tokens": 49}, 400, "max_tokens", None),
        ({"prompt": [300]}, 400, "prompt", None),
        ({"prompt": [5] * 60, "max_tokens": 5}, 400, "prompt", "context_length_exceeded"),
        ({"prompt": [5] * 64}, 400, "prompt", "context_length_exceeded"),
        ({"prompt": [5] * 1_000_000}, 400, "prompt", "context_length_exceeded"),
        ({"prompt": "ship " * 500_000}, 400, "prompt", "context_length_exceeded"),
        ({"logit_bias": {"300": 1}}, 400, "logit_bias", None),
        ({"stop_token_ids": [300]}, 400, "stop_token_ids", None),
        ({"min_tokens": 9, "max_tokens": 8}, 400, "min_tokens", None),
        ({"stream": True, "prompt": [5] * 65}, 400, "prompt", "context_length_exceeded"),
    ],
)
async def test_refusals(
    client: httpx.AsyncClient, fields: dict[str, Any], status: int, param: str, code: str | None
) -> None:
    answer = await client.post("/v1/completions", json={"model": "tiny", "prompt": "x", **fields})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (status, param, code)
    assert error["type"] == "invalid_request_error"


async def test_wrong_bodies_and_routes(client: httpx.AsyncClient) -> None:
    broken = await client.post("/v1/completions", content=b"{")
    assert (broken.status_code, broken.json()["error"]["type"]) == (400, "invalid_request_error")
    large = await client.post("/v1/completions", content=b" " * (MAX_BODY_BYTES + 1))
    assert (large.status_code, "larger than" in large.json()["error"]["message"]) == (413, True)
    for method, path, status in (("GET", "/v1/nothing", 404), ("GET", "/v1/completions", 405)):
        answer = await client.request(method, path)
        assert answer.status_code == status
        assert answer.json()["error"]["code"] == "unknown_url"
        assert path in answer.json()["error"]["message"]


class Failing:
    """An engine that fails after its first piece."""

    async def generate(self, prompt_T: object, sampling: Sampling) -> AsyncGenerator[Piece, None]:
        yield Piece("half", 1)
        raise EngineError("out of memory while generating")

    async def check(self, *, timeout_s: float) -> None:
        raise EngineError("stuck")


async def test_an_engine_that_fails_is_a_server_error(proven: ProvenModel) -> None:
    async with client_of(served(Failing(), proven)) as client:
        answer = await client.post("/v1/completions", json={"model": "tiny", "prompt": "x"})
        assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
        health = await client.get("/healthz")
        assert (health.status_code, health.json()["error"]["message"]) == (503, "stuck")
        stream = await client.post("/v1/completions", json={"model": "tiny", "prompt": "x", "stream": True})
        *_, last, _ = stream.text.split("\n\n")
        assert json.loads(last.removeprefix("data: "))["error"]["message"] == "out of memory while generating"
        assert "[DONE]" not in stream.text


_WORDS = ("secret", "detail")


class Crashing(Failing):
    """An engine with a bug."""

    async def generate(self, prompt_T: object, sampling: Sampling) -> AsyncGenerator[Piece, None]:
        raise KeyError(" ".join(_WORDS))
        yield


class HalfCharacter(Failing):
    """An engine whose first token has no text yet."""

    async def generate(self, prompt_T: object, sampling: Sampling) -> AsyncGenerator[Piece, None]:
        yield Piece("", 1, prompt_logprobs=(TokenLogprob(0, None),))
        yield Piece("x", 1, "length", logprobs=(TokenLogprob(5, -1.0), TokenLogprob(6, -2.0)))


async def test_logprobs_of_a_prompt_without_text_are_sent_too(proven: ProvenModel) -> None:
    async with client_of(served(HalfCharacter(), proven)) as client:
        chunks = await events(client, prompt="", echo=True, logprobs=0)
    told = [chunk["choices"][0]["logprobs"]["token_logprobs"] for chunk in chunks]
    assert told == [[None], [-1.0, -2.0]]


async def test_a_bug_shows_no_detail(proven: ProvenModel, caplog: pytest.LogCaptureFixture) -> None:
    async with client_of(served(Crashing(), proven)) as client:
        for stream in (False, True):
            body = {"model": "tiny", "prompt": "x", "stream": stream}
            answer = await client.post("/v1/completions", json=body)
            assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
            assert "secret" not in answer.text
    assert "KeyError" in caplog.text
    assert "secret" not in caplog.text


class Watched:
    """An engine that never ends, and knows when its reader has left."""

    def __init__(self) -> None:
        self.begun, self.left = asyncio.Event(), asyncio.Event()

    async def generate(self, prompt_T: object, sampling: Sampling) -> AsyncGenerator[Piece, None]:
        self.begun.set()
        try:
            while True:
                await asyncio.sleep(0.001)
                yield Piece("x", 1)
        finally:
            self.left.set()

    async def check(self, *, timeout_s: float) -> None:
        return


@pytest.mark.parametrize("stream", [True, False])
async def test_a_request_that_is_cancelled_leaves_the_engine(proven: ProvenModel, stream: bool) -> None:
    engine = Watched()
    async with client_of(served(engine, proven)) as client:
        body = {"model": "tiny", "prompt": "x", "stream": stream}
        task = asyncio.create_task(client.post("/v1/completions", json=body))
        await asyncio.wait_for(engine.begun.wait(), 30)
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait_for(engine.left.wait(), 5)


def test_the_routes_need_neither_torch_nor_ray() -> None:
    code = "import sys, orchestrator.serve.api.routes; print({'torch', 'ray', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
