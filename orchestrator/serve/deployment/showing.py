"""What a fresh service says when it is asked for what its model is for: the last proof of `slipway run`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.errors import ServeError
from orchestrator.serve.deployment import gateway, table
from orchestrator.serve.deployment.deploy import Service, ask

_ROWS = 3
_SHOWN_NUMBERS = 4
_SHOWN_CHARACTERS = 80


def show(
    service: Service, texts: Sequence[str], *, api_key: str | None, max_tokens: int, seed: int
) -> list[dict[str, str]]:
    """[{"prompt", "completion"}], of a service on the Ray that this process has joined.

    A decoder goes on with each text, a classifier says what class it is and how surely, an embedder gives the first
    numbers of its vector; a network of the user's own predicts rows of its probe.

    Raises:
        ServeError: the service did not answer, or refused.
    """
    entry = table.current(gateway.stored_table(), service.model)
    if entry is None:
        raise ServeError(f"the service at {service.url} has no model {service.model}", fix="start it anew")
    if entry.facts.kind == "decoder":
        # Not greedy: a small model left to its favourite token says little else. The seed keeps it repeatable.
        return ask(service, texts, max_tokens=max_tokens, temperature=0.7, seed=seed, api_key=api_key)
    if entry.facts.kind == "custom":
        return _predictions(service, Path(entry.export), api_key)
    if not texts:  # a request without any is a mistake to the service
        return []
    path = "/classify" if entry.facts.labels else "/embeddings"
    found = _posted(service, path, {"input": list(texts)}, api_key)["data"]
    told = [_class(each) if entry.facts.labels else _vector(each["embedding"]) for each in found]
    return [{"prompt": text, "completion": said} for text, said in zip(texts, told, strict=True)]


def _class(found: dict[str, Any]) -> str:
    return f"{found['label']} ({found['probabilities'][found['label']]:.0%})"


def _vector(numbers: list[float]) -> str:
    return f"{len(numbers)} numbers: {', '.join(f'{each:.3f}' for each in numbers[:_SHOWN_NUMBERS])}, ..."


def _predictions(service: Service, export: Path, api_key: str | None) -> list[dict[str, str]]:
    # Not at the top: it imports torch.
    from orchestrator.export.custom import probe_rows

    columns = {name: rows[:_ROWS].tolist() for name, rows in probe_rows(export).items()}
    found = _posted(service, "/predict", {"columns": columns}, api_key)["predictions"]
    rows = ({name: values[number] for name, values in columns.items()} for number in range(len(found)))
    return [{"prompt": _short(row), "completion": _short(said)} for row, said in zip(rows, found, strict=True)]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def _posted(service: Service, path: str, body: dict[str, Any], api_key: str | None) -> Any:
    import openai

    with openai.OpenAI(base_url=service.url, api_key=api_key or "none") as client:
        try:
            return client.post(path, body={"model": service.model, **body}, cast_to=object)
        except openai.OpenAIError as error:
            raise ServeError(f"the service at {service.url} did not answer POST /v1{path}: {error}") from error
