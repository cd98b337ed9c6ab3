"""Export a checkpoint as a Hugging Face folder that carries the proof of itself.

Shapes: B prompts, T positions, V vocabulary.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from model.config import ModelConfig
from model.huggingface import to_hf_config, to_hf_state
from orchestrator.checkpoint import layout
from orchestrator.errors import StoreError, storage_error
from orchestrator.export.card import ExportFacts, model_card
from orchestrator.export.compare import exact_difference, rounded_difference
from orchestrator.export.folder import (
    CONFIG,
    FORMAT,
    PROBE,
    TOKENIZER,
    WEIGHTS,
    as_json,
    logits_of,
    read_model,
    read_tensors,
    read_tokenizer,
    tensor_sha256,
)
from orchestrator.export.prove import prompt_text
from orchestrator.store import commit, read_manifest, writing

__all__ = ["ExportFacts", "write_export"]

_METADATA = {"format": "pt"}
"""transformers asks for it."""
_GO_BACK = "delete this checkpoint; the run goes on from the one before"


@dataclass(frozen=True)
class _Source:
    """What is exported: the checkpoint's network and the dataset's tokenizer, as their manifests have it."""

    checkpoint: Path
    dataset: Path
    config: ModelConfig
    step: int
    precision: str
    eos_token: str
    eos_token_id: int
    tokenizer_size: int


def write_export(*, checkpoint: Path, dataset: Path, into: Path, facts: ExportFacts) -> Path:
    """Write the export of a verified checkpoint; the same inputs give the same bytes. Returns `into`.

    Raises:
        StoreError: the checkpoint does not compute its own probe or fit its tokenizer, or storage failed.
    """
    source = _read_source(checkpoint, dataset)
    try:
        with writing(into) as tmp:
            tensors = _write_model(tmp, source)
            _write_tokenizer(tmp, source)
            _write_probe(tmp, source)
            card = model_card(
                facts,
                config=source.config,
                step=source.step,
                precision=source.precision,
                tokenizer_size=source.tokenizer_size,
            )
            (tmp / "README.md").write_text(card, encoding="utf-8")
            commit(tmp, into, _manifest(source, facts, tensors))
    except OSError as error:
        raise storage_error(error, doing=f"exporting {checkpoint.name}") from error
    return into


def _read_source(checkpoint: Path, dataset: Path) -> _Source:
    trained, data = read_manifest(checkpoint), read_manifest(dataset)
    try:
        config = ModelConfig.from_dict(json.loads((checkpoint / layout.MODEL_CONFIG).read_text(encoding="utf-8")))
        source = _Source(
            checkpoint=checkpoint,
            dataset=dataset,
            config=config,
            step=trained["step"],
            precision=trained["precision"],
            eos_token=data["eos_token"],
            eos_token_id=data["eos_token_id"],
            tokenizer_size=data["vocab_size"],
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StoreError(
            f"{checkpoint} and {dataset} cannot be exported: {error!r}",
            fix="make them again with this version",
        ) from None
    if source.tokenizer_size > config.vocab_size:
        raise StoreError(
            f"the tokenizer of {dataset} has {source.tokenizer_size} tokens, the model {config.vocab_size}",
            fix="train with a model.vocab_size that holds the tokenizer",
        )
    return source


def _write_model(folder: Path, source: _Source) -> dict[str, str]:
    """config.json, generation_config.json and the weights; returns each tensor's SHA-256."""
    eos = source.eos_token_id
    config = to_hf_config(source.config, bos_token_id=None, eos_token_id=eos, dtype="float32")
    (folder / CONFIG).write_text(as_json(config), encoding="utf-8")
    # Batches are padded with something; transformers warns at every call where nothing is named.
    generation = {"eos_token_id": eos, "pad_token_id": eos}
    (folder / "generation_config.json").write_text(as_json(generation), encoding="utf-8")
    state = to_hf_state(read_tensors(source.checkpoint / layout.WEIGHTS))
    tensors = {name: tensor.float().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / WEIGHTS, metadata=_METADATA)
    return {name: tensor_sha256(tensor) for name, tensor in sorted(tensors.items())}


def _write_tokenizer(folder: Path, source: _Source) -> None:
    """Without the class in tokenizer_config.json, transformers 4 invents a token outside the vocabulary."""
    shutil.copyfile(source.dataset / TOKENIZER, folder / TOKENIZER)
    read_tokenizer(folder)
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": source.eos_token,
        "model_max_length": source.config.context,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(as_json(config), encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(as_json({"eos_token": source.eos_token}), encoding="utf-8")


def _write_probe(folder: Path, source: _Source) -> None:
    """The checkpoint's prompts, with what the exported file computes: it is read again from disk."""
    probe = read_tensors(source.checkpoint / layout.PROBE)
    try:
        ids_BT, trainer_BTV = probe["input_ids"], probe["trainer_logits"].float()
    except KeyError as missing:
        raise StoreError(f"the probe of {source.checkpoint} has no {missing}", fix=_GO_BACK) from None
    logits_BTV = logits_of(read_model(folder, read_tensors(folder / WEIGHTS)), ids_BT)
    _check_agreement(source, ids_BT, trainer_BTV, logits_BTV)
    saved = {"input_ids": ids_BT, "logits": logits_BTV, "trainer_logits": trainer_BTV}
    save_file(saved, folder / PROBE, metadata=_METADATA)


def _check_agreement(source: _Source, ids_BT: Tensor, trainer_BTV: Tensor, logits_BTV: Tensor) -> None:
    """The trainer recorded its logits, these come from the exported file: the whole way lies between them."""
    rule = exact_difference if source.precision == "fp32" else rounded_difference
    difference = rule(trainer_BTV, logits_BTV)
    if difference is not None:
        prompt = prompt_text(read_tokenizer(source.dataset), ids_BT[difference.prompt].tolist())
        raise StoreError(
            f"{source.checkpoint} does not compute what its trainer recorded: prompt {prompt}, "
            f"position {difference.position}: {difference.detail}",
            fix=_GO_BACK,
        )


def _manifest(source: _Source, facts: ExportFacts, tensors: dict[str, str]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "name": facts.name,
        "step": source.step,
        "precision": source.precision,
        "eos_token": source.eos_token,
        "eos_token_id": source.eos_token_id,
        "tokenizer_size": source.tokenizer_size,
        "tensors": tensors,
    }
