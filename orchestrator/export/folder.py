"""An export on disk: names, and how its parts are read. Whether what was read is right, `prove` says.

Shapes: B prompts, T positions, V vocabulary.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from model.config import ModelConfig
from model.gpt import GPT
from model.huggingface import from_hf_config, from_hf_state
from orchestrator.errors import StoreError
from orchestrator.store import read_manifest

FORMAT = 1
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
PROBE = "probe.safetensors"


class FileEntry(BaseModel):
    """One file of the folder."""

    model_config = ConfigDict(extra="forbid", strict=True)

    path: str
    bytes: int
    sha256: str


class ExportManifest(BaseModel):
    """`manifest.json` of an export."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: int
    name: str
    step: int
    precision: str
    """The type it was trained in: says how near `trainer_logits` must be."""
    eos_token: str
    eos_token_id: int
    tokenizer_size: int
    """Ids from here on are padding of the vocabulary: no prompt holds them, and none is ever sampled."""
    tensors: dict[str, str]
    """SHA-256 of each tensor's bytes, by its name in model.safetensors."""
    files: list[FileEntry]


def read_export_manifest(export: Path) -> ExportManifest:
    """The manifest of a committed export.

    Raises:
        StoreError: not committed, not readable, or not an export's.
    """
    data = read_manifest(export)
    try:
        return ExportManifest.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise broken(export, f"manifest.json is not an export's: {where}: {first['msg']}") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        StoreError: it is absent or garbled.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise broken(path.parent, f"{path.name} is not readable: {error}") from None


def read_tokenizer(export: Path) -> Tokenizer:
    """The tokenizer, set to read prompts as the training data was read.

    Raises:
        StoreError: it is absent or not one.
    """
    try:
        tokenizer = Tokenizer.from_file(str(export / TOKENIZER))
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception for whatever is wrong in the file
        raise broken(export, f"{TOKENIZER} is not readable: {error}") from None
    # Text that spells a special token gets its letters, as in the data: no prompt can end a document.
    tokenizer.encode_special_tokens = True
    return tokenizer


def read_model(export: Path, tensors: dict[str, Tensor]) -> GPT:
    """The network that config.json describes, with these weights, ready to predict.

    Raises:
        StoreError: the configuration is not readable, or does not fit the weights.
    """
    try:
        config = from_hf_config(json.loads((export / CONFIG).read_text(encoding="utf-8")))
        return build_model(config, from_hf_state(tensors, tie_embeddings=config.tie_embeddings))
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise broken(export, f"{CONFIG} and {WEIGHTS} do not make a model: {error}") from None


def build_model(config: ModelConfig, state: dict[str, Tensor]) -> GPT:
    """A network with these weights, made without ever drawing random ones."""
    with torch.device("meta"):
        model = GPT(config)
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


@torch.inference_mode()
def logits_of(model: GPT, ids_BT: Tensor) -> Tensor:
    """Logits [B, T, V] on the CPU in fp32, one prompt at a time: memory for one is enough."""
    device = model.embed.weight.device
    return torch.cat([model(ids_1T.to(device)).float().cpu() for ids_1T in ids_BT[:, None]])


def tensor_sha256(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes, as they lie in a safetensors file."""
    return hashlib.sha256(tensor.contiguous().flatten().view(torch.uint8).numpy().data).hexdigest()


def broken(export: Path, what: str) -> StoreError:
    """An export that is not to be trusted."""
    fix = f"delete {export} and export the run again; an altered export is never repaired"
    return StoreError(f"{export} does not verify: {what}", fix=fix)


def as_json(value: Any) -> str:
    """JSON as the folder's files have it: the same value gives the same bytes."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
