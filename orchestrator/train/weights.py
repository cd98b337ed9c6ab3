"""Weights on disk, of our runs and exports and of Hugging Face folders, under our own names. Safetensors only."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from model.config import HeadConfig, ModelConfig
from model.huggingface import from_hf_config, from_hf_state, head_from_hf_config
from orchestrator.checkpoint.layout import MODEL_CONFIG, WEIGHTS
from orchestrator.checkpoint.origin import HF_CONFIG, Origin
from orchestrator.errors import StoreError
from orchestrator.store import read_manifest, sha256_file, verify_folder

_INDEX = f"{WEIGHTS}.index.json"
_AS_MADE = "take the folder as whoever made it wrote it"
_POOLER = "pooler.dense."


@dataclass(frozen=True)
class SourceWeights:
    """A network that was trained before."""

    config: ModelConfig
    head: HeadConfig
    state: dict[str, Tensor]
    """By the names of `families.build(config, head)`; an encoder's pooler may stand there beside them."""


def read_weights(origin: Origin) -> SourceWeights:
    """The network and its weights, on the CPU in the type in which they are stored.

    Raises:
        StoreError: a file is absent, garbled, altered or a pickle; the network is none of ours; a tensor does not fit.
    """
    if origin.is_checkpoint:
        return _read_checkpoint(origin.folder)
    if origin.is_ours:
        verify_folder(origin.folder)
    return _read_hugging_face(origin.folder)


def _read_checkpoint(folder: Path) -> SourceWeights:
    digests = {row["path"]: row["sha256"] for row in read_manifest(folder)["files"]}
    for name in (MODEL_CONFIG, WEIGHTS):  # the optimizer's state, which is larger, is not read
        if not (folder / name).is_file() or sha256_file(folder / name) != digests.get(name):
            raise StoreError(f"{folder / name} is absent or was altered", fix=f"delete {folder}: older ones are used")
    description = _read_json(folder / MODEL_CONFIG)
    head = description.pop("head", None)
    try:
        config = ModelConfig.from_dict(description)
        return SourceWeights(config, HeadConfig.from_dict(head) if head else HeadConfig(), _read(folder / WEIGHTS))
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(f"{folder / MODEL_CONFIG} is no network of this version: {error}", fix=_AS_MADE) from None


def _read_hugging_face(folder: Path) -> SourceWeights:
    data = _read_json(folder / HF_CONFIG)
    tensors = _read_shards(folder)
    try:
        config, head = from_hf_config(data), head_from_hf_config(data)
        state = from_hf_state(tensors, config, head)
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(f"{folder} cannot be used: {error}", fix=_AS_MADE) from None
    return SourceWeights(config, head, _pooler(tensors) | state)


def _pooler(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """An encoder's pooler: files have it whatever their head is, and the layout of a head that needs none drops it."""
    return {
        f"backbone.pooler.{name.rpartition('.')[2]}": tensor
        for name, tensor in tensors.items()
        if name.removeprefix("bert.").startswith(_POOLER)
    }


def _read_shards(folder: Path) -> dict[str, Tensor]:
    """All tensors, of one file or of several with an index."""
    if (folder / WEIGHTS).is_file():
        return _read(folder / WEIGHTS)
    if not (folder / _INDEX).is_file():
        _refuse_pickle(folder)
        raise StoreError(f"{folder} has no weights: neither {WEIGHTS} nor {_INDEX}", fix=_AS_MADE)
    places = _read_json(folder / _INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(p, str) and Path(p).name == p for p in places.values()):
        raise StoreError(f"{folder / _INDEX} does not say in which files the tensors are", fix=_AS_MADE)
    found: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        found |= _read(folder / name)
    if absent := sorted(places.keys() - found.keys()):
        raise StoreError(f"tensor {', '.join(absent)} of {folder / _INDEX} is in none of its files", fix=_AS_MADE)
    return found


def _refuse_pickle(folder: Path) -> None:
    if pickles := sorted(p.name for p in folder.glob("*.bin")):
        raise StoreError(
            f"{folder} holds its weights as a pickle ({', '.join(pickles)}), which can run any code when it is read",
            fix="where you trust it, load it with transformers there, and write it with "
            "save_pretrained(FOLDER, safe_serialization=True); then name FOLDER",
        )


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise StoreError(f"{path} is not readable: {error}", fix=_AS_MADE) from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} is not readable: {error}", fix=_AS_MADE) from None
    if not isinstance(data, dict):
        raise StoreError(f"{path} holds no JSON object", fix=_AS_MADE)
    return data
