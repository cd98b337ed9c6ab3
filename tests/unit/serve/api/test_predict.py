"""`/v1/predict` over a proven network, without Ray: rows in, predictions out, and what is wrong with a request."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import torch
from custom_fixtures import export
from torch import Tensor, nn

from orchestrator.export.custom import ProvenNetwork, prove_custom
from orchestrator.serve.api.predict import ServedNetwork, build_predict_app, parse_rows
from orchestrator.serve.engine.protocol import EngineError

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> ProvenNetwork:
    return prove_custom(export(tmp_path_factory.mktemp("custom")))


def client_of(network: ProvenNetwork) -> httpx.AsyncClient:
    app = build_predict_app(ServedNetwork(name="fraud", network=network, created=1_700_000_000))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


@pytest.fixture
async def client(network: ProvenNetwork) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(network) as client:
        yield client


def columns(network: ProvenNetwork, **changed: Any) -> dict[str, Any]:
    given = {**{name: rows.tolist() for name, rows in network.probe.items()}, **changed}
    return {name: values for name, values in given.items() if values is not None}


async def test_rows_get_their_predictions_in_order(client: httpx.AsyncClient, network: ProvenNetwork) -> None:
    answer = await client.post("/v1/predict", json={"columns": columns(network)})
    assert answer.status_code == 200, answer.text
    want = network.predict(network.probe)
    assert answer.json() == {"model": "fraud", "predictions": pytest.approx(want.tolist(), abs=1e-6)}
    last = {name: values[-1:] for name, values in columns(network).items()}
    alone = await client.post("/v1/predict", json={"model": "fraud", "columns": last})
    assert alone.json()["predictions"] == pytest.approx(want.tolist()[-1:], abs=1e-6)


async def test_it_lists_its_model_and_is_healthy(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/v1/models")).json()
    assert [model["id"] for model in listed["data"]] == ["fraud"]
    assert (await client.get("/v1/models/fraud")).json() == listed["data"][0]
    assert (await client.get("/healthz")).json() == {"status": "ok", "model": "fraud"}
    assert (await client.get("/v1/models/other")).json()["error"]["code"] == "model_not_found"


EIGHT = [0] * 8


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"hour": None}, "hour is missing, of type int64"),
        ({"fraud": [0] * 6}, "fraud is no column of this model, which has amounts, merchants, hour"),
        ({"hour": [1, 2]}, "they have different numbers of rows: amounts 6, merchants 6, hour 2"),
        ({"hour": [1, 2, 3, 4, 5, 6.5]}, "hour[5] is 6.5, not whole numbers of 64 bits"),
        ({"hour": [1, 2, 3, 4, True, 6]}, "hour[4] is True, not whole numbers of 64 bits"),
        ({"hour": [1, 2, 3, 4, 5, [6]]}, "hour[5] is [6], not a number"),
        ({"hour": 3}, "hour is no list with a value for each row"),
        ({"hour": []}, "hour is no list with a value for each row"),
        ({"hour": [2**63] * 6}, "not whole numbers of 64 bits"),
        ({"merchants": [EIGHT] * 5 + [[0] * 7]}, "merchants[5] holds 7 numbers, not 8"),
        ({"merchants": [EIGHT] * 5 + [3]}, "merchants[5] is 3, not a list of 8"),
        ({"amounts": [["1"] * 8] * 6}, "amounts[0] is ['1', '1',"),
        ({"amounts": [[1e39] * 8] * 6}, "amounts[0] holds a number beyond 32 bits"),
        ({"amounts": [[None] * 8] * 6}, "not numbers"),
        ({"amounts": [[[1] * 3, [1] * 5]] * 6}, "amounts[0] holds lists of different lengths"),
        ({"merchants": [[50] * 8] * 6}, "the network knows no such number"),
    ],
)
async def test_a_wrong_column_is_openais_400(
    client: httpx.AsyncClient, network: ProvenNetwork, changed: dict[str, Any], told: str
) -> None:
    answer = await client.post("/v1/predict", json={"columns": columns(network, **changed)})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", "columns")
    assert told in error["message"]


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ("{", 400, None),
        ("[]", 400, None),
        ("{}", 400, "columns"),
        ('{"columns": {}, "rows": 3}', 400, "rows"),
        ('{"columns": {"hour": [NaN]}}', 400, None),
        ('{"columns": {}, "model": "other"}', 404, "model"),
    ],
)
async def test_a_body_that_is_none(client: httpx.AsyncClient, body: str, status: int, param: str | None) -> None:
    answer = await client.post("/v1/predict", content=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


def test_lists_in_lists_are_the_same_row() -> None:
    flat, lines = (
        parse_rows(f'{{"columns": {{"pixels": {pixels}}}}}'.encode(), {"pixels": "float32[4]"}, "m")["pixels"]
        for pixels in ("[[1, 2, 3, 4]]", "[[[1, 2], [3, 4]]]")
    )
    assert torch.equal(flat, lines)
    assert (flat.dtype, flat.shape) == (torch.float32, (1, 4))


class Failing(nn.Module):
    def __init__(self, error: Exception | None) -> None:
        super().__init__()
        self.weight, self.error = nn.Parameter(torch.zeros(1)), error

    def forward(self, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.error:
            raise self.error
        return {"predictions": columns["amounts"][:, 0] * float("nan")}


@pytest.mark.parametrize("error", [None, RuntimeError("secret of the network"), SystemError()])
async def test_a_network_that_fails_is_a_500_and_unwell(network: ProvenNetwork, error: Exception | None) -> None:
    broken = ProvenNetwork(Failing(error), network.config, network.manifest, network.probe)
    async with client_of(broken) as client:
        answer = await client.post("/v1/predict", json={"columns": columns(network)})
        assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
        assert "secret" not in answer.text
        assert (await client.get("/healthz")).status_code == 503
    served = ServedNetwork(name="fraud", network=broken, created=0)
    with pytest.raises(EngineError):
        await served.check(timeout_s=5)
