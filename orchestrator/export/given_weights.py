"""The network and the tensors of a Hugging Face folder that somebody else has made, for imports and `train.from`.

Safetensors only: reading a pickle may run any code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from model.config import HeadConfig, ModelConfig
from model.huggingface import from_hf_config, from_hf_state, head_from_hf_config
from orchestrator.errors import StoreError
from orchestrator.export.folder import CONFIG, WEIGHTS

INDEX = f"{WEIGHTS}.index.json"
AS_MADE = "take the folder whole, as whoever made it wrote it"
"""What to do about a file that is absent or garbled."""
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_NAMED_PICKLES = 3
_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def read_network(folder: Path) -> tuple[ModelConfig, HeadConfig]:
    """The backbone and the head that config.json describes.

    Raises:
        StoreError: it is not readable, or not a network of ours; names the setting.
    """
    said = read_json(folder / CONFIG)
    try:
        return from_hf_config(said), head_from_hf_config(said)
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(
            f"{folder / CONFIG} is not a model that Slipway has: {error}",
            fix="take a Llama, GPT-2 or BERT with a head of the list in docs/import.md",
        ) from None


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights, all of them there; before several of them the index that names them.

    Raises:
        StoreError: there are none, or pickles alone; or the index is garbled, or names what is no file beside it.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        return [folder / INDEX, *(folder / name for name in _shards(folder))]
    if pickles := sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES):
        named = ", ".join(pickles[:_NAMED_PICKLES])
        raise StoreError(
            f"the weights of {folder} are pickles ({named}): reading one may run any code",
            fix=f"where you trust each pickle ({named}), load the model with transformers and write it with "
            "save_pretrained(FOLDER, safe_serialization=True), then name FOLDER; or fetch the model's safetensors",
        )
    raise StoreError(
        f"{folder} has no weights: it has neither {WEIGHTS} nor {INDEX}", fix="give a folder with the weights in it"
    )


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of `weight_files`, under their own names, on the CPU in the types in which they are stored.

    Raises:
        StoreError: as `weight_files`, or a file is garbled.
    """
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        if path.name != INDEX:
            tensors |= read_file(path)
    return tensors


def under_our_names(
    folder: Path, tensors: Mapping[str, Tensor], config: ModelConfig, head: HeadConfig
) -> dict[str, Tensor]:
    """What `read_tensors(folder)` gave, for `build(config, head).load_state_dict`.

    Raises:
        StoreError: tensors are missing, extra or of another shape, each named; or one is of a type that is not read,
            or holds values that are no numbers.
    """
    try:
        state = from_hf_state(tensors, config, head)
    except ValueError as error:
        raise StoreError(
            f"{folder} cannot be used: {error}{_in_no_file(folder, tensors)}",
            fix="save the whole model again with `save_pretrained`, under the architecture that config.json names",
        ) from None
    _require_numbers(folder, tensors, state)
    return state


def read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file, on the CPU in the types in which they are stored.

    Raises:
        StoreError: it is absent or garbled.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise StoreError(f"{path} is not readable: {error}", fix=AS_MADE) from None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        StoreError: it is absent or garbled, or holds no object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} is not readable: {error}", fix=AS_MADE) from None
    if not isinstance(value, dict):
        raise StoreError(f"{path} holds no JSON object", fix=AS_MADE)
    return value


def _require_numbers(folder: Path, tensors: Mapping[str, Tensor], used: Mapping[str, Tensor]) -> None:
    """Refuse what `used` has of another type, or not finite, under the name that it has in `tensors`."""
    if others := {tensor.dtype for tensor in used.values()}.difference(_TYPES):
        name, dtype = next((name, tensor.dtype) for name, tensor in tensors.items() if tensor.dtype in others)
        raise StoreError(
            f"{name} of {folder} is {dtype}; float32, bfloat16 and float16 are read",
            fix="save the model in one of these, without quantisation",
        )
    if not all(tensor.isfinite().all() for tensor in used.values()):
        name = next(name for name, tensor in tensors.items() if tensor.dtype in _TYPES and not tensor.isfinite().all())
        raise StoreError(
            f"{name} of {folder} holds values that are not finite (NaN or infinity)",
            fix="take the weights from before they went wrong, or another copy of them",
        )


def _shards(folder: Path) -> list[str]:
    """The files that the index names, each beside it."""
    names = sorted(set(_weight_map(folder).values()))
    for name in names:
        if Path(name).name != name or Path(name).suffix != ".safetensors":
            raise _lost(folder, f"it names {name!r}, which is no safetensors file beside it")
        if not (folder / name).is_file():
            raise StoreError(f"{folder / name} is not readable: {INDEX} names {name}, which is absent", fix=AS_MADE)
    return names


def _weight_map(folder: Path) -> dict[str, str]:
    """Tensor to file."""
    found = read_json(folder / INDEX).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found.values()):
        raise _lost(folder, "it has no weight_map")
    return found


def _lost(folder: Path, reason: str) -> StoreError:
    return StoreError(f"{folder / INDEX} does not say in which files the tensors are: {reason}", fix=AS_MADE)


def _in_no_file(folder: Path, tensors: Mapping[str, Tensor]) -> str:
    """Which tensors of the index no file has, as the end of a message; of folders without one nothing.

    By itself that is no error: converters leave second copies of a tied table in the index, and out of the files.
    """
    absent = [] if (folder / WEIGHTS).is_file() else sorted(_weight_map(folder).keys() - tensors.keys())
    if not absent:
        return ""
    more = f", nor {len(absent) - 1} more" if absent[1:] else ""
    return f"; tensor {absent[0]} of {folder / INDEX} is in none of its files{more}"
