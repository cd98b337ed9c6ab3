"""`POST /v1/predict`: a network of the user's own over HTTP, rows in, predictions out. Without Ray.

B rows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pydantic_core
import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from torch import Tensor

from orchestrator.export.custom import ProvenNetwork
from orchestrator.serve.api.completions import ModelCard
from orchestrator.serve.api.errors import ApiError, model_not_found
from orchestrator.serve.api.routes import HEALTH_TIMEOUT_S, answer_errors, read_body
from orchestrator.serve.engine.protocol import EngineError

_FLOAT32_MAX = float(np.finfo(np.float32).max)
_KEYS = ("model", "columns")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ServedNetwork:
    """One network behind its API."""

    name: str
    network: ProvenNetwork
    created: int
    """Seconds since 1970."""
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)

    async def predict(self, columns: Mapping[str, Tensor]) -> list[Any]:
        """Predictions of all rows; one request computes at a time, beside the event loop.

        Raises:
            ApiError: a number is outside of what the network knows, such as an entry of a table.
            EngineError: the network failed, or predicted what is no number.
        """
        async with self._turn:
            try:
                found = await asyncio.to_thread(self.network.predict, columns)
            except IndexError as error:
                raise ApiError(f"columns: the network knows no such number: {error}", param="columns") from None
            except Exception as error:
                _log.exception("a prediction failed")
                raise EngineError(f"{type(error).__name__} while predicting") from error
        if not bool(torch.isfinite(found).all()):
            raise EngineError("the network predicts what is no number for these rows")
        predictions: list[Any] = found.tolist()
        return predictions

    async def check(self, *, timeout_s: float) -> None:
        """Predict the probe's rows.

        Raises:
            EngineError: that failed, or took longer.
        """
        try:
            await asyncio.wait_for(self.predict(self.network.probe), timeout_s)
        except asyncio.TimeoutError:
            raise EngineError(f"the network predicted nothing in {timeout_s} s") from None
        except ApiError as error:
            raise EngineError(error.message) from error


def build_predict_app(served: ServedNetwork) -> FastAPI:
    """The routes of one served network."""
    app = FastAPI(title="Slipway", docs_url=None, redoc_url=None, openapi_url=None)
    card = ModelCard(id=served.name, created=served.created).model_dump()

    @app.get("/healthz")
    async def healthz() -> Response:
        try:
            await served.check(timeout_s=HEALTH_TIMEOUT_S)
        except EngineError as error:
            raise ApiError(str(error), status=503) from error
        return JSONResponse({"status": "ok", "model": served.name})

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [card]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        if name != served.name:
            raise model_not_found(name, served.name)
        return JSONResponse(card)

    @app.post("/v1/predict")
    async def predict(request: Request) -> Response:
        body = await read_body(request)
        columns = await asyncio.to_thread(parse_rows, body, served.network.config.columns, served.name)
        return JSONResponse({"model": served.name, "predictions": await served.predict(columns)})

    answer_errors(app)
    return app


def parse_rows(body: bytes, types: Mapping[str, str], model: str) -> dict[str, Tensor]:
    """The rows of a request's body, {"columns": {name: [value of each row]}}: [B] or [B, size] by column.

    Args:
        types: name -> `int64` or `float32`, or one of these with a size, of all columns that there must be.
        model: what the request may name as its `model`.

    Raises:
        ApiError: 400, naming the first thing that is wrong; 404 for another model.
    """
    given = _columns_of(body, model)
    if unknown := sorted(given.keys() - types.keys()):
        raise ApiError(
            f"columns: {unknown[0]} is no column of this model, which has {', '.join(types)}", param="columns"
        )
    rows: dict[str, Tensor] = {}
    for name, kind in types.items():
        if name not in given:
            raise ApiError(f"columns: {name} is missing, of type {kind}", param="columns")
        rows[name] = torch.from_numpy(_values(given[name], name, kind))
    counts = {name: len(tensor) for name, tensor in rows.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ApiError(f"columns: they have different numbers of rows: {told}", param="columns")
    return rows


def _columns_of(body: bytes, model: str) -> dict[str, Any]:
    try:
        data = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(f"We could not parse the JSON body of your request: {error}") from None
    if not isinstance(data, dict):
        raise ApiError("The body of your request must be a JSON object")
    if unknown := sorted(data.keys() - set(_KEYS)):
        raise ApiError(f"Unrecognized request argument supplied: {unknown[0]}", param=unknown[0])
    if data.get("model") not in (None, model):
        raise model_not_found(str(data["model"]), model)
    if not isinstance(columns := data.get("columns"), dict):
        raise ApiError('you must provide a columns parameter: {"NAME": [value of each row]}', param="columns")
    return columns


def _values(given: Any, name: str, kind: str) -> npt.NDArray[Any]:
    """One column: [B] or [B, size]. Lists in lists, such as the lines of an image, are taken one after another."""
    dtype, _, size = kind.rstrip("]").partition("[")
    if not isinstance(given, list) or not given:
        raise _wrong(name, "is no list with a value for each row")
    for number, row in enumerate(given):
        if isinstance(row, list) != bool(size):
            raise _wrong(f"{name}[{number}]", f"is {_told(row)}, not {f'a list of {size}' if size else 'a number'}")
    rows = []
    for number, row in enumerate(given):
        values = _numbers(row, f"{name}[{number}]", dtype)
        if size and values.size != int(size):
            raise _wrong(f"{name}[{number}]", f"holds {values.size} numbers, not {size}")
        rows.append(values.reshape(-1) if size else values.reshape(()))
    return np.stack(rows)


def _numbers(row: Any, where: str, dtype: str) -> npt.NDArray[Any]:
    try:
        values = np.asarray(row)
    except ValueError:
        raise _wrong(where, "holds lists of different lengths") from None
    if values.dtype.kind not in ("i" if dtype == "int64" else "iuf"):
        wanted = "whole numbers of 64 bits" if dtype == "int64" else "numbers"
        raise _wrong(where, f"is {_told(row)}, not {wanted}")
    if dtype == "float32" and values.size and not float(np.abs(values).max()) <= _FLOAT32_MAX:
        raise _wrong(where, "holds a number beyond 32 bits")
    return values.astype(dtype)


def _told(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _wrong(where: str, what: str) -> ApiError:
    return ApiError(f"columns: {where} {what}", param="columns")
