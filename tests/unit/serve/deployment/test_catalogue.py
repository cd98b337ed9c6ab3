"""The gateway's table with real tokenizers: which version answers, and what is seen of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator
from collections.abc import Sequence as Ids
from dataclasses import replace
from pathlib import Path

import pytest
from export_fixtures import tiny_export

from orchestrator.serve.api.answer import Served
from orchestrator.serve.api.encoders import ServedEncoder
from orchestrator.serve.api.errors import ApiError
from orchestrator.serve.deployment.catalogue import AnyEngine, Catalogue
from orchestrator.serve.deployment.observe import Request
from orchestrator.serve.deployment.table import Entry, Facts
from orchestrator.serve.engine.encoder_protocol import Encoded
from orchestrator.serve.engine.protocol import EngineBusyError, EngineError, Piece, Sampling

pytestmark = pytest.mark.anyio
DECODER = Facts(kind="decoder", fingerprint="fp_1", created=7, eos_id=0, vocab_size=300, context=64, max_tokens=64)


class Echo:
    """Says the name of its application."""

    def __init__(self, app: str) -> None:
        self._app = app

    async def generate(self, prompt_T: Ids[int], sampling: Sampling) -> AsyncGenerator[Piece, None]:
        if sampling.max_tokens == 13:
            raise EngineError("unlucky")
        yield Piece(self._app, 1, "stop")

    async def encode(self, prompts_B: Ids[Ids[int]]) -> Encoded:
        if len(prompts_B) == 13:
            raise EngineError("unlucky")
        return Encoded(logits_BC=[[float(len(ids)), 0.0] for ids in prompts_B])

    async def check(self, *, timeout_s: float) -> None:
        if self._app == "m-bad":
            raise EngineError("no token")


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_export(tmp_path_factory.mktemp("catalogue"))


class Table:
    """A catalogue of tiny models."""

    def __init__(self, export: Path) -> None:
        self.export = export
        self.ended: list[tuple[str, Request]] = []
        self.catalogue = Catalogue(self.connect, lambda entry, request: self.ended.append((entry.app, request)))

    def connect(self, entry: Entry) -> AnyEngine:
        return Echo(entry.app)

    def entry(self, version: str, share: float = 1.0, model: str = "m") -> Entry:
        return Entry(
            model=model, version=version, export=str(self.export), share=share, app=f"{model}-{version}", facts=DECODER
        )

    def decoder(self, model: str = "m") -> Served:
        served = self.catalogue.choose(model)
        assert isinstance(served, Served)
        return served

    async def said(self, model: str = "m", max_tokens: int = 1) -> str:
        served = self.decoder(model)
        pieces = [piece async for piece in served.engine.generate([1], Sampling(max_tokens=max_tokens))]
        return pieces[0].text


@pytest.fixture
def table(export: Path) -> Table:
    return Table(export)


async def test_versions_answer_by_their_shares_and_are_seen(table: Table) -> None:
    table.catalogue.take([table.entry("v1", 0.8), table.entry("v2", 0.2), table.entry("v1", model="n")])
    said = Counter([await table.said() for _ in range(400)])
    assert set(said) == {"m-v1", "m-v2"}
    assert 40 <= said["m-v2"] <= 120
    assert table.catalogue.seen("m-v2", 60.0).requests == said["m-v2"]
    with pytest.raises(EngineError):
        await table.said("n", max_tokens=13)
    assert table.catalogue.seen("n-v1", 60.0).errors == 1
    assert len(table.ended) == 401
    assert [card.id for card in table.catalogue.cards()] == ["m", "n"]


async def test_requests_under_way_go_on_with_the_version_that_they_have(table: Table) -> None:
    table.catalogue.take([table.entry("v1")])
    pieces = table.decoder().engine.generate([1], Sampling(max_tokens=1))
    await anext(pieces)
    table.catalogue.take([table.entry("v2")])
    assert await table.said() == "m-v2"
    assert table.catalogue.under_way("m-v1") == 1
    await pieces.aclose()
    assert table.catalogue.under_way("m-v1") == 0
    table.catalogue.take([table.entry("v2")])
    assert [backend.entry.version for backend in table.catalogue.backends] == ["v2"]


async def test_weights_that_were_swapped_into_an_application_have_another_version(table: Table) -> None:
    first = table.entry("v1")
    table.catalogue.take([first])
    assert table.catalogue.choose("m").version == "v1"
    table.catalogue.take([replace(first, version="v2", facts=replace(DECODER, fingerprint="fp_2"))])
    served = table.decoder()
    assert (served.version, served.fingerprint) == ("v2", "fp_2")


async def test_an_encoder_answers_and_is_seen(table: Table) -> None:
    labels = ("long", "short")
    table.catalogue.take([replace(table.entry("v1"), facts=replace(DECODER, kind="encoder", labels=labels))])
    served = table.catalogue.choose("m")
    assert isinstance(served, ServedEncoder)
    assert (served.labels, served.context, served.version) == (labels, 64, "v1")
    assert (await served.engine.encode([[1, 2]])).logits_BC == [[2.0, 0.0]]
    with pytest.raises(EngineError):
        await served.engine.encode([[1]] * 13)
    seen = table.catalogue.seen("m-v1", 60.0)
    assert (seen.requests, seen.errors, seen.silent_s) == (2, 1, 0.0)


async def test_what_is_not_there_is_named(table: Table) -> None:
    with pytest.raises(EngineError, match="there is no model yet"):
        await table.catalogue.check(timeout_s=1.0)
    network = replace(table.entry("v1", model="rows"), facts=replace(DECODER, kind="custom"))
    table.catalogue.take([table.entry("v1"), network])
    with pytest.raises(ApiError, match="The model `x` does not exist; this service has `m`, `rows`") as e:
        table.catalogue.choose("x")
    assert e.value.status == 404
    with pytest.raises(ApiError, match="ask /v1/predict"):
        table.catalogue.choose("rows")


async def test_health_is_that_of_the_main_versions(table: Table) -> None:
    table.catalogue.take([table.entry("v1", 0.9), table.entry("bad", 0.1)])
    await table.catalogue.check(timeout_s=1.0)  # a canary that fails is the rollout's business
    table.catalogue.take([table.entry("bad")])
    with pytest.raises(EngineError, match="no token"):
        await table.catalogue.check(timeout_s=1.0)
    table.catalogue.take([replace(table.entry("bad"), sleeps=True)])
    await table.catalogue.check(timeout_s=1.0)


async def test_where_a_version_fails_the_one_beside_it_answers(table: Table) -> None:
    table.catalogue.take((table.entry("v1", 0.6), table.entry("v2", 0.4)))
    served = {each.version: each for each in (table.decoder() for _ in range(60))}

    def instead_of(version: str) -> str | None:
        other = served[version].instead()
        return None if other is None else other.version

    assert (instead_of("v2"), instead_of("v1")) == ("v1", "v2")
    table.catalogue.take((table.entry("v1"),))
    assert (instead_of("v2"), instead_of("v1")) == ("v1", None)  # v2: of a request that was under way when it went


async def test_a_full_version_gives_its_requests_to_the_one_beside_it_and_then_refuses(table: Table) -> None:
    narrow = replace(DECODER, requests=1)
    table.catalogue.take([replace(table.entry(version, 0.5), facts=narrow) for version in ("v1", "v2")])
    one = table.decoder().engine.generate([1], Sampling(max_tokens=1))
    first = (await anext(one)).text
    other = table.decoder().engine.generate([1], Sampling(max_tokens=1))
    assert {first, (await anext(other)).text} == {"m-v1", "m-v2"}
    with pytest.raises(EngineBusyError, match="too many requests wait"):
        table.decoder()
    await one.aclose()
    assert await table.said() == first
    assert table.catalogue.seen(first, 60.0).errors == 0
    await other.aclose()
