"""An export on disk: names, and how its parts are read. Whether what was read is right, `prove` says.

Shapes: B prompts, T positions, C classes (the vocabulary, labels, or the ends of an answer), D width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from model.config import HeadConfig, ModelConfig
from model.families import Network, build
from model.gpt import GPT
from model.huggingface import from_hf_config, from_hf_state, head_from_hf_config
from orchestrator.export.manifest import INDEX, WEIGHTS, broken, read_export_manifest

__all__ = [
    "CONFIG",
    "INDEX",
    "INPUTS",
    "PROBE",
    "TOKENIZER",
    "WEIGHTS",
    "as_json",
    "broken",
    "build_model",
    "largest_id",
    "logits_of",
    "read_export_manifest",
    "read_model",
    "read_tensors",
    "read_tokenizer",
    "tensor_sha256",
]

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
PROBE = "probe.safetensors"
INPUTS = ("input_ids", "token_type_ids", "attention_mask")
"""What a network may read, in the order of its arguments; a decoder reads the first alone."""


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


def largest_id(tokenizer: Tokenizer) -> int:
    """The largest token id: ids may have gaps, so that their number says less."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)


def read_model(export: Path, tensors: dict[str, Tensor]) -> Network:
    """The network that config.json describes, with these weights, ready to predict.

    Raises:
        StoreError: the configuration is not readable, or does not fit the weights.
    """
    try:
        data = json.loads((export / CONFIG).read_text(encoding="utf-8"))
        config, head = from_hf_config(data), head_from_hf_config(data)
        return build_model(config, from_hf_state(tensors, config, head), head)
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise broken(export, f"{CONFIG} and {WEIGHTS} do not make a model: {error}") from None


def build_model(config: ModelConfig, state: Mapping[str, Tensor], head: HeadConfig) -> Network:
    """A network with these weights, made without ever drawing random ones, ready to predict."""
    with torch.device("meta"):
        model = build(config, head)
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


@torch.inference_mode()
def logits_of(model: Network, inputs: Mapping[str, Tensor]) -> Tensor:
    """What the network says of a batch [B, T] of `INPUTS`, on the CPU in fp32: [B, T, C], [B, C], or [B, D] embeddings.

    One row at a time: memory for one is enough.
    """
    device = next(model.parameters()).device
    rows = range(len(inputs["input_ids"]))
    return torch.cat([_row(model, {k: t[i : i + 1].to(device) for k, t in inputs.items()}).cpu() for i in rows])


def _row(model: Network, inputs: Mapping[str, Tensor]) -> Tensor:
    ids_1T = inputs["input_ids"]
    if isinstance(model, GPT):
        logits_1TV: Tensor = model(ids_1T)
        return logits_1TV.float()
    outputs: dict[str, Tensor] = model(ids_1T, *(inputs.get(name) for name in INPUTS[1:]))
    return outputs["embeddings" if model.head.kind == "embedding" else "logits"].float()


def tensor_sha256(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes, as they lie in a safetensors file."""
    return hashlib.sha256(tensor.contiguous().flatten().view(torch.uint8).numpy().data).hexdigest()


def as_json(value: Any) -> str:
    """JSON as the folder's files have it: the same value gives the same bytes."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
