"""A version in the shadow does what the others do, for nobody: clients, keys and counts never hear of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from collections.abc import Sequence as Ids
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_fixtures import CountingFront
from export_fixtures import tiny_export

from orchestrator.serve.api.routes import build_app
from orchestrator.serve.deployment.catalogue import AnyEngine, Catalogue
from orchestrator.serve.deployment.metrics import Metrics
from orchestrator.serve.deployment.observe import Request
from orchestrator.serve.deployment.table import Entry, Facts
from orchestrator.serve.engine.encoder_protocol import Encoded
from orchestrator.serve.engine.protocol import EngineError, Piece, Sampling

pytestmark = pytest.mark.anyio
DECODER = Facts(
    kind="decoder", fingerprint="fp", created=7, eos_id=0, vocab_size=300, context=64, max_tokens=64, requests=3
)


class Says:
    """Answers with its own name; the shadow's may fail or never end."""

    def __init__(self, app: str) -> None:
        self.app = app
        self.asked: list[Any] = []
        self.fails = self.hangs = False
        self.cancelled = 0

    async def generate(self, prompt_T: Ids[int], sampling: Sampling) -> AsyncGenerator[Piece, None]:
        self.asked.append((list(prompt_T), sampling))
        await self._behave()
        yield Piece(self.app, 1, "stop")

    async def encode(self, prompts_B: Ids[Ids[int]]) -> Encoded:
        self.asked.append(prompts_B)
        await self._behave()
        return Encoded(logits_BC=[[1.0, 0.0]] * len(prompts_B))

    async def check(self, *, timeout_s: float) -> None:
        return

    async def _behave(self) -> None:
        if self.fails:
            raise EngineError("no more")
        if self.hangs:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise


class Service:
    """v1 answers, v2 is in the shadow."""

    def __init__(self, export: Path, facts: Facts = DECODER) -> None:
        self.engines: dict[str, Says] = {}
        self.ended: list[tuple[Entry, Request]] = []
        self.front = CountingFront(keeps_text=True)
        self.catalogue = Catalogue(self.connect, lambda entry, request: self.ended.append((entry, request)))
        one, two = (
            Entry(model="m", version=name, export=str(export), share=1.0, app=name, facts=facts)
            for name in ("v1", "v2")
        )
        self.shadow = replace(two, share=0.0, shadow=1.0)
        self.table = (one, self.shadow)
        self.catalogue.take(self.table)
        transport = httpx.ASGITransport(build_app(self.catalogue, self.front), raise_app_exceptions=False)
        self.client = httpx.AsyncClient(
            transport=transport, base_url="http://localhost", headers={"authorization": "Bearer right"}
        )

    def connect(self, entry: Entry) -> AnyEngine:
        return self.engines.setdefault(entry.app, Says(entry.app))

    async def ask(self, **more: Any) -> httpx.Response:
        body = {"model": "m", "prompt": "def ", "max_tokens": 4, **more}
        return await asyncio.wait_for(self.client.post("/v1/completions", json=body), 5)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_export(tmp_path_factory.mktemp("shadow"))


@pytest.fixture
async def service(export: Path) -> Service:
    return Service(export)


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_it_gets_a_copy_and_clients_the_current_versions_answer(service: Service) -> None:
    for stream in (False, True):
        answer = await service.ask(stream=stream, seed=3, stop="x")
        assert (answer.status_code, answer.headers["x-slipway-version"]) == (200, "v1")
        assert "v1" in answer.text
        assert "v2" not in answer.text
    await settled()
    assert service.engines["v2"].asked == service.engines["v1"].asked
    assert len(service.engines["v2"].asked) == 2


async def test_no_key_pays_for_it_and_no_answer_of_it_is_kept(service: Service) -> None:
    await service.ask()
    await settled()
    (counted,) = service.front.admissions
    assert counted.asked["version"] == "v1"
    (settled_as,) = counted.settled
    assert settled_as["completion_tokens"] == 1
    assert settled_as["answered"].completions == ("v1",)
    assert service.catalogue.seen("v2", 60.0).requests == 1
    assert sorted(entry.app for entry, _ in service.ended) == ["v1", "v2"]


async def test_a_request_that_was_refused_is_not_copied(service: Service) -> None:
    await service.ask(prompt=[5] * 64, max_tokens=4)
    await service.ask(model="other")
    await settled()
    assert service.engines["v2"].asked == []


async def test_one_that_fails_is_seen_to_fail_and_heard_by_nobody(service: Service) -> None:
    service.engines["v2"].fails = True
    assert [(await service.ask()).status_code for _ in range(5)] == [200] * 5
    await settled()
    seen = service.catalogue.seen("v2", 60.0)
    assert (seen.requests, seen.errors) == (5, 5)
    assert service.catalogue.seen("v1", 60.0).errors == 0


async def test_one_that_hangs_delays_nobody_is_dropped_when_full_and_ends_with_its_rollout(service: Service) -> None:
    service.engines["v2"].hangs = True
    assert [(await service.ask()).status_code for _ in range(5)] == [200] * 5
    await settled()
    assert (service.catalogue.under_way("v2"), service.catalogue.seen("v2", 60.0).refused) == (3, 2)
    service.catalogue.take(service.table[:1])
    service.catalogue.end_copies()
    await settled()
    assert (service.engines["v2"].cancelled, service.catalogue.under_way("v2")) == (3, 0)


async def test_it_never_stands_in_for_the_current_version(service: Service) -> None:
    service.engines["v1"].fails = True
    answer = await service.ask()
    assert (answer.status_code, answer.json()["error"]["message"]) == (500, "no more")
    assert {service.catalogue.pick("m").entry.app for _ in range(50)} == {"v1"}


async def test_copies_are_a_share_of_the_requests_and_end_when_it_takes_over(service: Service) -> None:
    service.catalogue.take((service.table[0], replace(service.shadow, shadow=0.25)))
    for _ in range(200):
        await service.ask()
    await settled()
    assert 25 <= len(service.engines["v2"].asked) <= 80
    service.engines["v2"].asked.clear()
    service.catalogue.take((replace(service.shadow, share=1.0, shadow=0.0),))
    assert (await service.ask()).headers["x-slipway-version"] == "v2"
    await settled()
    assert len(service.engines["v2"].asked) == 1


async def test_texts_for_an_encoder_are_copied_too(export: Path) -> None:
    facts = replace(DECODER, kind="encoder", labels=("good", "bad"))
    service = Service(export, facts)
    answer = await service.client.post("/v1/classify", json={"model": "m", "input": ["a", "b"]})
    await settled()
    assert (answer.status_code, answer.headers["x-slipway-version"]) == (200, "v1")
    assert service.engines["v2"].asked == service.engines["v1"].asked != []


async def test_copies_are_counted_apart(service: Service) -> None:
    metrics = Metrics()
    await service.ask()
    await settled()
    for entry, request in service.ended:
        metrics.ended(entry, request)
    text = metrics.exposition([], {}).decode()
    assert 'slipway_requests_total{model="m",outcome="copy",version="v2"} 1.0' in text
    assert 'slipway_requests_total{model="m",outcome="ok",version="v1"} 1.0' in text
    assert 'slipway_streamed_tokens_total{model="m",version="v2"} 0.0' in text
