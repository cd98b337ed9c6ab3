"""The files of an export, whatever it is made of: a checkpoint of ours, or somebody else's folder."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from model.config import HeadConfig, ModelConfig
from model.huggingface import to_hf_config, to_hf_state
from orchestrator.export.compare import comparable, exact_difference, rounded_difference
from orchestrator.export.folder import (
    CONFIG,
    INDEX,
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
from orchestrator.export.manifest import FORMAT
from orchestrator.export.prove import prompt_text
from orchestrator.store import fsync

_METADATA = {"format": "pt"}
"""transformers asks for it."""
_DECODER_INPUTS = ["input_ids", "attention_mask"]
_ENCODER_INPUTS = ["input_ids", "token_type_ids", "attention_mask"]
ROLES = ("eos_token", "bos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
"""Special tokens that Hugging Face's tokenizers know by what they are for."""


class Disagreement(Exception):
    """The files do not compute the logits that they came with; says where."""


@dataclass(frozen=True)
class SpecialToken:
    """A token with a meaning of its own."""

    text: str
    id: int


@dataclass(frozen=True)
class Contents:
    """All that the files are a function of."""

    config: ModelConfig
    head: HeadConfig
    state: Mapping[str, Tensor]
    """Under our names."""
    tokenizer: str
    """Of its tokenizer.json."""
    tokenizer_size: int
    """One more than the largest token id."""
    tokens: Mapping[str, SpecialToken]
    """By their role; `eos_token` is always there."""
    chat_template: str | None
    ends: tuple[int, ...]
    """Of a decoder: the tokens that end what it writes."""
    inputs: Mapping[str, Tensor]
    """The probe's batch."""
    trainer_logits: Tensor
    precision: str
    """The type that `trainer_logits` were computed in."""


def special_tokens(facts: Mapping[str, Any]) -> dict[str, SpecialToken]:
    """By role, from `TokenizerFacts` as plain data."""
    texts = {number: text for text, number in facts["special_tokens"].items()}
    ids = {role: facts[f"{role}_id"] for role in ROLES if role != "bos_token"}
    tokens = {role: SpecialToken(texts[number], number) for role, number in ids.items() if number is not None}
    if bos := facts["bos_token"]:
        tokens["bos_token"] = SpecialToken(bos, facts["special_tokens"][bos])
    return tokens


def write_contents(folder: Path, contents: Contents) -> dict[str, Any]:
    """Write all but the model card and the manifest; returns what the manifest says of them.

    Raises:
        Disagreement: the files, as read back from disk, do not compute `trainer_logits`.
    """
    tensors = _write_model(folder, contents)
    with ThreadPoolExecutor(2) as pool:  # neither needs Python's lock, and the disk is slow
        hashes = pool.submit(lambda: {name: tensor_sha256(tensor) for name, tensor in sorted(tensors.items())})
        pool.submit(fsync, folder / WEIGHTS)  # for `commit`, which does it again and says what fails
        _write_tokenizer(folder, contents)
        _write_probe(folder, contents)
    return {
        "format": FORMAT,
        "family": contents.config.family,
        "head": contents.head.to_dict(),
        "precision": contents.precision,
        "eos_token": contents.tokens["eos_token"].text,
        "eos_token_id": contents.tokens["eos_token"].id,
        "tokenizer_size": contents.tokenizer_size,
        "tensors": hashes.result(),
    }


def _write_model(folder: Path, contents: Contents) -> dict[str, Tensor]:
    """config.json, generation_config.json and the weights, which it returns."""
    decoder = contents.config.is_decoder
    ids = {role: token.id for role, token in contents.tokens.items()}
    config = to_hf_config(
        contents.config,
        contents.head,
        bos_token_id=ids.get("bos_token") if decoder else None,
        eos_token_id=ids["eos_token"] if decoder else None,
        pad_token_id=None if decoder else ids.get("pad_token"),
        dtype="float32",
    )
    (folder / CONFIG).write_text(as_json(config), encoding="utf-8")
    if decoder:
        ends = contents.ends[0] if len(contents.ends) == 1 else list(contents.ends)
        # Batches are padded with something; transformers warns at every call where nothing is named.
        generation = {"eos_token_id": ends, "pad_token_id": ids.get("pad_token", ids["eos_token"])}
        (folder / "generation_config.json").write_text(as_json(generation), encoding="utf-8")
    state = to_hf_state(contents.state, contents.config, contents.head)
    tensors = {name: tensor.float().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / WEIGHTS, metadata=_METADATA)
    # vLLM takes each .safetensors for weights, the probe's too, where no index says which are.
    size_bytes = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size_bytes}, "weight_map": dict.fromkeys(sorted(tensors), WEIGHTS)}
    (folder / INDEX).write_text(as_json(index), encoding="utf-8")
    return tensors


def _write_tokenizer(folder: Path, contents: Contents) -> None:
    """Without the class in tokenizer_config.json, transformers 4 invents a token outside the vocabulary."""
    (folder / TOKENIZER).write_text(contents.tokenizer, encoding="utf-8")
    read_tokenizer(folder)
    roles = {role: contents.tokens[role].text for role in ROLES if role in contents.tokens}
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **roles,
        "model_max_length": contents.config.context,
        "model_input_names": _DECODER_INPUTS if contents.config.is_decoder else _ENCODER_INPUTS,
        "clean_up_tokenization_spaces": False,
        **({"chat_template": contents.chat_template} if contents.chat_template else {}),
    }
    (folder / "tokenizer_config.json").write_text(as_json(config), encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(as_json(roles), encoding="utf-8")


def _write_probe(folder: Path, contents: Contents) -> None:
    """The prompts, with what the written file computes: it is read again from disk."""
    inputs = {name: tensor.to(torch.int64).contiguous() for name, tensor in contents.inputs.items()}
    trainer_logits = contents.trainer_logits.float().contiguous()
    logits = logits_of(read_model(folder, read_tensors(folder / WEIGHTS)), inputs)
    rule = exact_difference if contents.precision == "fp32" else rounded_difference
    head = contents.head.kind
    if difference := rule(comparable(trainer_logits, head), comparable(logits, head)):
        prompt = prompt_text(read_tokenizer(folder), inputs["input_ids"][difference.prompt].tolist())
        raise Disagreement(difference.told(prompt))
    save_file({**inputs, "logits": logits, "trainer_logits": trainer_logits}, folder / PROBE, metadata=_METADATA)
