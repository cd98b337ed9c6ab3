"""The OpenAPI document: the forms of bodies and answers beside the routes. No torch, no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

_REF = "#/components/schemas/{model}"
_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def taking(request: type[BaseModel], answer: type[BaseModel] | None = None) -> dict[str, Any]:
    """Arguments of a route: its body and its answer, as the document shows them."""
    content: dict[str, Any] = {} if answer is None else {"application/json": {"schema": _ref(answer)}}
    return {
        "openapi_extra": {
            "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(request)}}},
            "responses": {
                "200": {"description": "The answer", "content": content},
                "default": {"description": "An error", "content": {"application/json": {"schema": _ERROR}}},
            },
        }
    }


def _ref(form: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REF.format(model=form.__name__)}


def describe(app: FastAPI, forms: Sequence[type[BaseModel]]) -> None:
    """Let /openapi.json have the forms that `taking` names."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = get_openapi(title=app.title, version="1", routes=app.routes)
            _, schemas = models_json_schema([(form, "validation") for form in forms], ref_template=_REF)
            components = found.setdefault("components", {})
            components.setdefault("schemas", {}).update(schemas["$defs"])
            components["securitySchemes"] = {
                "key": {"type": "http", "scheme": "bearer", "description": "A key; or as the password of HTTP Basic."}
            }
            found["security"] = [{"key": []}]
            app.openapi_schema = found
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
