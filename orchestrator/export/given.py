"""Read a Hugging Face folder that somebody else has made: check all of it before a value is used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from model.config import HeadConfig, ModelConfig
from orchestrator.data.tokens import facts as tokenizers
from orchestrator.errors import DataError, StoreError
from orchestrator.export.contents import ROLES, SpecialToken, special_tokens
from orchestrator.export.folder import CONFIG, TOKENIZER
from orchestrator.export.given_weights import read_json, read_network, read_tensors, under_our_names, weight_files

GENERATION = "generation_config.json"
_MAPS = ("special_tokens_map.json", "tokenizer_config.json")
"""The second wins, as in transformers."""
_OPTIONAL = (*_MAPS, GENERATION, "chat_template.jinja")


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
    return [folder / CONFIG, folder / TOKENIZER, *optional, *weight_files(folder)]


def read_given_model(folder: Path) -> GivenModel:
    """The model in a folder that `source_files` accepts.

    Raises:
        StoreError: the architecture is not ours; tensors are missing, extra or of another shape, each named; or the
            tokenizer does not belong to the model.
    """
    config, head = read_network(folder)
    tokenizer = _tokenizer(folder)
    if tokenizer.size > config.vocab_size:
        raise StoreError(
            f"the largest id of {folder / TOKENIZER} is {tokenizer.size - 1}, the model's vocabulary ends at "
            f"{config.vocab_size - 1}",
            fix="take the tokenizer that belongs to the model, or resize the model's token table to it",
        )
    return GivenModel(config, head, _state(folder, config, head), tokenizer)


def _state(folder: Path, config: ModelConfig, head: HeadConfig) -> dict[str, Tensor]:
    tensors = read_tensors(folder)
    return {name: tensor.float() for name, tensor in under_our_names(folder, tensors, config, head).items()}


def _tokenizer(folder: Path) -> GivenTokenizer:
    config = read_json(folder / CONFIG)
    generation = read_json(folder / GENERATION) if (folder / GENERATION).is_file() else {}
    try:
        given = tokenizers.read_given(folder)
    except DataError as error:
        raise StoreError(error.message, fix=error.fix) from None
    try:
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
        said = read_json(folder / name) if (folder / name).is_file() else {}
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
