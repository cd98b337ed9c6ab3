"""Weights on disk, of our runs and exports and of Hugging Face folders, under our own names. Safetensors only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from model.config import HeadConfig, ModelConfig
from orchestrator.checkpoint.layout import MODEL_CONFIG, WEIGHTS
from orchestrator.checkpoint.origin import Origin
from orchestrator.errors import StoreError
from orchestrator.export.given_weights import (
    AS_MADE,
    read_file,
    read_json,
    read_network,
    read_tensors,
    under_our_names,
)
from orchestrator.store import read_manifest, sha256_file, verify_folder

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
    description = read_json(folder / MODEL_CONFIG)
    if "custom" in description:
        raise StoreError(f"{folder} is of a network of your own", fix="name a gpt or bert in train.from")
    head = description.pop("head", None)
    try:
        config = ModelConfig.from_dict(description)
        return SourceWeights(config, HeadConfig.from_dict(head) if head else HeadConfig(), read_file(folder / WEIGHTS))
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(f"{folder / MODEL_CONFIG} is no network of this version: {error}", fix=AS_MADE) from None


def _read_hugging_face(folder: Path) -> SourceWeights:
    config, head = read_network(folder)
    tensors = read_tensors(folder)
    state = under_our_names(folder, tensors, config, head)
    return SourceWeights(config, head, _pooler(tensors) | state)


def _pooler(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """An encoder's pooler: files have it whatever their head is, and the layout of a head that needs none drops it."""
    return {
        f"backbone.pooler.{name.rpartition('.')[2]}": tensor
        for name, tensor in tensors.items()
        if name.removeprefix("bert.").startswith(_POOLER)
    }
