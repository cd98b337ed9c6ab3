"""Read a Hugging Face folder that somebody else has made: check all of it before a value is used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from model.config import HeadConfig, ModelConfig
from model.huggingface import from_hf_config, from_hf_state, head_from_hf_config
from orchestrator.data.tokens import facts as tokenizers
from orchestrator.errors import DataError, StoreError
from orchestrator.export.contents import ROLES, SpecialToken, special_tokens
from orchestrator.export.folder import CONFIG, TOKENIZER, WEIGHTS

INDEX = "model.safetensors.index.json"
GENERATION = "generation_config.json"
_MAPS = ("special_tokens_map.json", "tokenizer_config.json")
"""The second wins, as in transformers."""
_OPTIONAL = (*_MAPS, GENERATION, "chat_template.jinja")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_TYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class GivenTokenizer:
    """Its tokenizer, and what its files say of it."""

    text: str
    """tokenizer.json, without truncation and padding: settings of one use, which would cut every other."""
    size: int
    """One more than the largest id."""
    tokens: Mapping[str, SpecialToken]
    """By role, `eos_token` among them."""
    ends: tuple[int, ...]
    """What ends a generated text, the end token first."""
    chat_template: str | None


@dataclass(frozen=True)
class GivenModel:
    """What the folder holds, under our names."""

    config: ModelConfig
    head: HeadConfig
    state: dict[str, Tensor]
    """fp32; of bf16 and fp16 the same values."""
    tokenizer: GivenTokenizer


def source_files(folder: Path) -> list[Path]:
    """The files of the folder that make up the model.

    Raises:
        StoreError: it is no Hugging Face folder, its weights are pickles, or a shard of them is absent.
    """
    if not (folder / CONFIG).is_file():
        raise StoreError(f"{folder} is no Hugging Face folder: it has no {CONFIG}", fix="give the folder of one model")
    if not (folder / TOKENIZER).is_file():
        raise StoreError(
            f"{folder} has no {TOKENIZER}",
            fix="save it with `AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)`, or copy the model's own",
        )
    optional = [folder / name for name in _OPTIONAL if (folder / name).is_file()]
    return [folder / CONFIG, folder / TOKENIZER, *optional, *_weight_files(folder)]


def read_given_model(folder: Path) -> GivenModel:
    """The model in a folder that `source_files` accepts.

    Raises:
        StoreError: the architecture is not ours; tensors are missing, extra or of another shape, each named; or the
            tokenizer does not belong to the model.
    """
    said = _json(folder / CONFIG)
    try:
        config, head = from_hf_config(said), head_from_hf_config(said)
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(
            f"{folder / CONFIG} is not a model that Slipway has: {error}",
            fix="import a Llama, GPT-2 or BERT with a head of the list in docs/import.md",
        ) from None
    tokenizer = _tokenizer(folder, said)
    if tokenizer.size > config.vocab_size:
        raise StoreError(
            f"the largest id of {folder / TOKENIZER} is {tokenizer.size - 1}, the model's vocabulary ends at "
            f"{config.vocab_size - 1}",
            fix="take the tokenizer that belongs to the model, or resize the model's token table to it",
        )
    return GivenModel(config, head, _state(folder, config, head), tokenizer)


def _state(folder: Path, config: ModelConfig, head: HeadConfig) -> dict[str, Tensor]:
    tensors = _read_weights(folder)
    others = sorted({str(t.dtype) for t in tensors.values() if t.is_floating_point() and t.dtype not in _TYPES})
    if others:
        raise StoreError(
            f"weights of {folder} are {', '.join(others)}; float32, bfloat16 and float16 are read",
            fix="save the model in one of these, without quantisation",
        )
    try:
        return {name: tensor.float() for name, tensor in from_hf_state(tensors, config, head).items()}
    except ValueError as error:
        raise StoreError(
            f"{folder} cannot be imported: {error}",
            fix="save the whole model again with `save_pretrained`, under the architecture that config.json names",
        ) from None


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        return [folder / INDEX, *(folder / name for name in _shards(folder))]
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES)
    if pickles:
        raise StoreError(
            f"the weights of {folder} are pickles ({', '.join(pickles[:3])}): reading one may run any code",
            fix="where you trust them, load the model with transformers and `save_pretrained` it, which writes "
            f"{WEIGHTS}; or fetch the model's safetensors",
        )
    raise StoreError(f"{folder} has neither {WEIGHTS} nor {INDEX}", fix="give a folder with the weights in it")


def _shards(folder: Path) -> list[str]:
    """The files that the index names, each beside it."""
    names = sorted(set(_weight_map(folder).values()))
    for name in names:
        if Path(name).name != name or Path(name).suffix != ".safetensors":
            raise StoreError(f"{folder / INDEX} names {name!r}, which is no safetensors file beside it", fix=_RELOAD)
        if not (folder / name).is_file():
            raise StoreError(f"{folder / INDEX} names {name}, which is absent", fix=_RELOAD)
    return names


_RELOAD = "fetch the folder again, whole"


def _weight_map(folder: Path) -> dict[str, str]:
    """Tensor to file."""
    found = _json(folder / INDEX).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found.values()):
        raise StoreError(f"{folder / INDEX} has no weight_map", fix=_RELOAD)
    return found


def _read_weights(folder: Path) -> dict[str, Tensor]:
    files = [path for path in _weight_files(folder) if path.name != INDEX]
    tensors: dict[str, Tensor] = {}
    for path in files:
        try:
            tensors |= load_file(path)
        except (OSError, SafetensorError, ValueError) as error:
            raise StoreError(f"{path} is not readable: {error}", fix=_RELOAD) from None
    return tensors


def _tokenizer(folder: Path, config: Mapping[str, Any]) -> GivenTokenizer:
    generation = _json(folder / GENERATION) if (folder / GENERATION).is_file() else {}
    try:
        given = tokenizers.read_given(folder)
        ids = [*_ids(config.get("eos_token_id")), *_ids(generation.get("eos_token_id"))]
        eos = given.eos_token or _token_of(given.text, ids)
        known = tokenizers.facts(given.text, eos_token=eos)
    except DataError as error:
        raise StoreError(
            f"{folder}: {error.message}",
            fix=f'{error.fix}; or name it as "eos_token" in tokenizer_config.json',
        ) from None
    named = {role: text for role, text in _said(folder).items() if text in known.special_tokens}
    tokens = special_tokens(asdict(known))
    tokens |= {r: SpecialToken(text, known.special_tokens[text]) for r, text in named.items() if r != "eos_token"}
    ends = [known.eos_token_id, *(i for i in _ids(generation.get("eos_token_id")) if i < known.vocab_size)]
    return GivenTokenizer(
        text=_without_cutting(given.text),
        size=known.vocab_size,
        tokens=tokens,
        ends=tuple(dict.fromkeys(ends)),
        chat_template=given.chat_template,
    )


def _said(folder: Path) -> dict[str, str]:
    """Role to token, as the tokenizer's files have it."""
    found: dict[str, str] = {}
    for name in _MAPS:
        said = _json(folder / name) if (folder / name).is_file() else {}
        for role in ROLES:
            value = said.get(role)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                found[role] = text
    return found


def _ids(value: Any) -> list[int]:
    """`eos_token_id` is a number, a list of numbers, or absent."""
    values = value if isinstance(value, list) else [value]
    return [number for number in values if isinstance(number, int)]


def _token_of(text: str, ids: list[int]) -> str | None:
    """The text of the first of these ids."""
    return tokenizers.load(text).id_to_token(ids[0]) if ids else None


def _without_cutting(text: str) -> str:
    data = json.loads(text)
    if data.get("truncation") is None and data.get("padding") is None:
        return text
    return json.dumps({**data, "truncation": None, "padding": None}, ensure_ascii=False, indent=2)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} is not readable: {error}", fix=_RELOAD) from None
    if not isinstance(value, dict):
        raise StoreError(f"{path} holds no JSON object", fix=_RELOAD)
    return value
