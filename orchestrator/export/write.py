"""Export a checkpoint as a Hugging Face folder that carries the proof of itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.config import HeadConfig, ModelConfig
from orchestrator.checkpoint import layout
from orchestrator.errors import StoreError, storage_error
from orchestrator.export.card import ExportFacts, model_card
from orchestrator.export.contents import Contents, Disagreement, special_tokens, write_contents
from orchestrator.export.folder import INPUTS, TOKENIZER, read_tensors
from orchestrator.store import commit, read_manifest, writing

__all__ = ["ExportFacts", "write_export"]

_GO_BACK = "delete this checkpoint; the run goes on from the one before"


@dataclass(frozen=True)
class _Source:
    """What is exported, as the manifests of checkpoint and dataset have it."""

    checkpoint: Path
    dataset: Path
    config: ModelConfig
    head: HeadConfig
    step: int
    attempt: int | None
    precision: str
    tokenizer: Mapping[str, Any]
    """`TokenizerFacts` as plain data."""


def write_export(*, checkpoint: Path, dataset: Path, into: Path, facts: ExportFacts) -> Path:
    """Write the export of a verified checkpoint; the same inputs give the same bytes. Returns `into`.

    Raises:
        StoreError: the checkpoint does not compute its own probe or fit its tokenizer, or storage failed.
    """
    source = _read_source(checkpoint, dataset)
    try:
        with writing(into) as tmp:
            contents = _contents(source)
            card = model_card(
                facts,
                config=source.config,
                head=source.head,
                step=source.step,
                precision=source.precision,
                tokenizer_size=contents.tokenizer_size,
            )
            about = write_contents(tmp, contents)
            (tmp / "README.md").write_text(card, encoding="utf-8")
            commit(tmp, into, {**about, **_origin(source, facts)})
    except Disagreement as difference:
        raise StoreError(
            f"{checkpoint} does not compute what its trainer recorded: {difference}", fix=_GO_BACK
        ) from None
    except OSError as error:
        raise storage_error(error, doing=f"exporting {checkpoint.name}") from error
    return into


def _read_source(checkpoint: Path, dataset: Path) -> _Source:
    trained, data = read_manifest(checkpoint), read_manifest(dataset)
    try:
        description = json.loads((checkpoint / layout.MODEL_CONFIG).read_text(encoding="utf-8"))
        head = HeadConfig.from_dict(description.pop("head"))
        source = _Source(
            checkpoint=checkpoint,
            dataset=dataset,
            config=ModelConfig.from_dict(description),
            head=head,
            step=trained["step"],
            attempt=trained.get("attempt"),
            precision=trained["precision"],
            tokenizer=data["tokenizer"],
        )
        size = source.tokenizer["vocab_size"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StoreError(
            f"{checkpoint} and {dataset} cannot be exported: {error!r}",
            fix="make them again with this version",
        ) from None
    if size > source.config.vocab_size:
        raise StoreError(
            f"the tokenizer of {dataset} has {size} tokens, the model {source.config.vocab_size}",
            fix="train with a model.vocab_size that holds the tokenizer",
        )
    return source


def _contents(source: _Source) -> Contents:
    probe = read_tensors(source.checkpoint / layout.PROBE)
    try:
        trainer_logits = probe.pop("trainer_logits")
        first = probe.pop("input_ids")
    except KeyError as missing:
        raise StoreError(f"the probe of {source.checkpoint} has no {missing}", fix=_GO_BACK) from None
    if unknown := sorted(probe.keys() - set(INPUTS)):
        raise StoreError(
            f"the probe of {source.checkpoint} has {', '.join(unknown)}, which other libraries would not read",
            fix="let the objective's inputs be those that the model computes alone",
        )
    tokens = special_tokens(source.tokenizer)
    template = source.tokenizer["chat_template"]
    ends = [tokens["eos_token"].id]
    if template and (turn_end := source.tokenizer["turn_end_token"]):
        ends.append(source.tokenizer["special_tokens"][turn_end])
    return Contents(
        config=source.config,
        head=source.head,
        state=read_tensors(source.checkpoint / layout.WEIGHTS),
        tokenizer=(source.dataset / TOKENIZER).read_text(encoding="utf-8"),
        tokenizer_size=source.tokenizer["vocab_size"],
        tokens=tokens,
        chat_template=template,
        ends=tuple(dict.fromkeys(ends)),
        inputs={"input_ids": first, **probe},
        trainer_logits=trainer_logits,
        precision=source.precision,
    )


def _origin(source: _Source, facts: ExportFacts) -> dict[str, Any]:
    return {
        "name": facts.name,
        "origin": "trained",
        "run": facts.run,
        "dataset": facts.dataset,
        "source": None,
        "step": source.step,
        "attempt": source.attempt,
    }
