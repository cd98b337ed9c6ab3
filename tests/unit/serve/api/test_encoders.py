"""Embeddings and classes over a real engine on a tiny encoder, as the official client sees them."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest
import torch
from export_fixtures import HEADS, SHAPES, tiny_export

from model.config import HeadConfig
from model.heads import EncoderHead
from orchestrator.export.prove import Proven, prove_export
from orchestrator.serve.api.encoders import ServedEncoder
from orchestrator.serve.api.models import OneModel
from orchestrator.serve.engine.encoder import EncoderEngine
from orchestrator.serve.engine.protocol import EngineBusyError, EngineError

pytestmark = pytest.mark.anyio
TEXTS = ["class Ship", "héllo", "def add(a, b)"]


def proven_encoder(root: Path, head: HeadConfig) -> Proven[EncoderHead]:
    return cast(Proven[EncoderHead], prove_export(tiny_export(root, config=SHAPES["bert"], head=head)))


def served_encoder(proven: Proven[EncoderHead]) -> ServedEncoder:
    return ServedEncoder(
        name="bert",
        engine=EncoderEngine(proven, threads=1),
        tokenizer=proven.tokenizer,
        vocab_size=proven.allowed_size,
        context=proven.config.context,
        labels=proven.model.head.labels,
        fingerprint="fp_test",
        created=1_700_000_000,
    )


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Proven[EncoderHead]:
    return proven_encoder(tmp_path_factory.mktemp("embedder"), HeadConfig("embedding"))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Proven[EncoderHead]:
    return proven_encoder(tmp_path_factory.mktemp("classifier"), HEADS["classification"])


@pytest.fixture(scope="module")
def served_embedder(embedder: Proven[EncoderHead]) -> Iterator[ServedEncoder]:
    served = served_encoder(embedder)
    yield served
    cast(EncoderEngine, served.engine).close()


@pytest.fixture(scope="module")
def served_classifier(classifier: Proven[EncoderHead]) -> Iterator[ServedEncoder]:
    served = served_encoder(classifier)
    yield served
    cast(EncoderEngine, served.engine).close()


@pytest.fixture
async def client(client_of: Any, served_embedder: ServedEncoder) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(OneModel(served_embedder)) as client:
        yield client


def alone(proven: Proven[EncoderHead], text: str) -> torch.Tensor:
    """What the network says of one text, without an engine."""
    with torch.inference_mode():
        outputs = proven.model(torch.tensor([proven.tokenizer.encode(text).ids]))
    return next(iter(outputs.values()))[0].float()


async def test_embeddings_are_the_networks_scaled_to_length_1(
    client: httpx.AsyncClient, embedder: Proven[EncoderHead]
) -> None:
    answer = (await client.post("/v1/embeddings", json={"model": "bert", "input": TEXTS})).json()
    assert [each["index"] for each in answer["data"]] == [0, 1, 2]
    for text, each in zip(TEXTS, answer["data"], strict=True):
        want = torch.nn.functional.normalize(alone(embedder, text), dim=0)
        torch.testing.assert_close(torch.tensor(each["embedding"]), want, atol=1e-5, rtol=1e-4)
    tokens = sum(len(embedder.tokenizer.encode(text).ids) for text in TEXTS)
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


async def test_the_forms_of_an_embedding(client: httpx.AsyncClient, embedder: Proven[EncoderHead]) -> None:
    async def ask(**fields: Any) -> Any:
        answer = await client.post("/v1/embeddings", json={"model": "bert", "input": TEXTS[0], **fields})
        return answer.json()["data"][0]["embedding"]

    plain = await ask()
    packed = np.frombuffer(base64.b64decode(await ask(encoding_format="base64")), "<f4")
    np.testing.assert_allclose(packed, plain, rtol=1e-6)
    raw = await ask(normalize=False)
    np.testing.assert_allclose(raw, alone(embedder, TEXTS[0]), rtol=1e-3, atol=1e-5)
    short = await ask(dimensions=4)
    np.testing.assert_allclose(short, np.array(plain[:4]) / np.linalg.norm(plain[:4]), rtol=1e-5)
    by_ids = await ask(input=embedder.tokenizer.encode(TEXTS[0]).ids)
    np.testing.assert_allclose(by_ids, plain, rtol=1e-5)


async def test_classes_are_the_networks(
    client_of: Any, served_classifier: ServedEncoder, classifier: Proven[EncoderHead]
) -> None:
    async with client_of(OneModel(served_classifier)) as client:
        answer = (await client.post("/v1/classify", json={"model": "bert", "input": TEXTS})).json()
    for text, each in zip(TEXTS, answer["data"], strict=True):
        want = alone(classifier, text).softmax(0)
        np.testing.assert_allclose(list(each["probabilities"].values()), want, rtol=1e-3, atol=1e-5)
        assert list(each["probabilities"]) == ["bad", "so so", "good"]
        assert each["label"] == ["bad", "so so", "good"][int(want.argmax())]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": 5}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": [9999]}, "input"),
        ({"input": "ship " * 99}, "input"),
        ({"input": "x" * 1_000_000}, "input"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": 99}, "dimensions"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"task": "x"}, "task"),
    ],
)
async def test_wrong_requests_are_400_and_named(client: httpx.AsyncClient, fields: dict[str, Any], param: str) -> None:
    answer = await client.post("/v1/embeddings", json={"model": "bert", "input": "a", **fields})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ("/v1/classify", {"input": "x"}),
    ],
)
async def test_another_kind_of_model_says_where_to_ask(
    client: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    answer = await client.post(path, json={"model": "bert", **body})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "wrong_kind_of_model")
    assert "ask /v1/embeddings" in answer.json()["error"]["message"]


async def test_embeddings_are_admitted_and_settled_once(
    client_of: Any, served_embedder: ServedEncoder, front: Any
) -> None:
    async with client_of(OneModel(served_embedder), front) as client:
        await client.post("/v1/embeddings", json={"model": "bert", "input": "a"})
        await client.post("/v1/embeddings", json={"model": "bert", "input": "a", "dimensions": 99})
    good, bad = front.admissions
    assert (good.asked["scope"], good.asked["max_tokens"]) == ("embed", 0)
    assert [used["failed"] for used in (*good.settled, *bad.settled)] == [False, True]


async def test_requests_at_once_share_batches_and_get_their_own(embedder: Proven[EncoderHead]) -> None:
    engine = EncoderEngine(embedder, threads=1)
    try:
        prompts = [embedder.tokenizer.encode(text).ids for text in TEXTS * 20]
        answers = await asyncio.gather(*(engine.encode([prompt]) for prompt in prompts))
        for text, answer in zip(TEXTS * 20, answers, strict=True):
            assert answer.vectors_BD is not None
            torch.testing.assert_close(torch.tensor(answer.vectors_BD[0]), alone(embedder, text), atol=1e-4, rtol=1e-3)
        await engine.check(timeout_s=5)
    finally:
        engine.close()
    with pytest.raises(EngineError, match="has ended"):
        await engine.encode([[1]])


async def test_a_batch_that_fails_reaches_its_clients_and_leaves_the_engine_alive(
    embedder: Proven[EncoderHead],
) -> None:
    engine = EncoderEngine(embedder, threads=1)
    try:
        with pytest.raises(EngineError, match="while encoding"):
            await engine.encode([[10**6]])
        assert (await engine.encode([[5]])).vectors_BD
    finally:
        engine.close()


@pytest.mark.parametrize("kind", ["mlm", "token-classification"])
async def test_a_network_with_another_head_embeds_by_the_mean_of_its_tokens(tmp_path: Path, kind: str) -> None:
    proven = proven_encoder(tmp_path, HEADS[kind])
    engine = EncoderEngine(proven, threads=1)
    try:
        ids = [proven.tokenizer.encode(text).ids for text in TEXTS]
        answer = await engine.encode(ids)
    finally:
        engine.close()
    assert answer.vectors_BD is not None
    for each, vector in zip(ids, answer.vectors_BD, strict=True):
        with torch.inference_mode():
            want = proven.model.backbone.hidden(torch.tensor([each]), None, None)[0].mean(0)
        torch.testing.assert_close(torch.tensor(vector), want, atol=1e-5, rtol=1e-4)


async def test_a_long_list_lets_others_and_the_check_go_first(embedder: Proven[EncoderHead]) -> None:
    engine = EncoderEngine(embedder, threads=1)
    try:
        ended: list[str] = []

        async def ask(name: str, texts: int) -> None:
            await engine.encode([[5] * embedder.config.context] * texts)
            ended.append(name)

        async def check() -> None:
            await engine.check(timeout_s=5)
            ended.append("check")

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(ask("long", 2000))
            await asyncio.sleep(0.02)
            tasks.create_task(ask("short", 2))
            tasks.create_task(check())
        assert ended[-1] == "long"
        with pytest.raises(EngineBusyError, match="texts wait already"):
            await engine.encode([[5]] * 9000)
    finally:
        engine.close()
