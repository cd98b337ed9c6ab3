"""An exported decoder as one GGUF file, which llama.cpp and what is built on it open. The home of the package `gguf`.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Weights and tokenizer alone; the proof stays in
the export's folder.

Shapes: H heads, K half a head's width, I inputs of a projection.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, pre_tokenizers
from torch import Tensor

from model.config import FamilyName, ModelConfig
from model.huggingface import from_hf_config
from orchestrator.errors import StoreError
from orchestrator.export.folder import CONFIG, WEIGHTS, read_tensors, read_tokenizer
from orchestrator.export.manifest import broken, read_export_manifest
from orchestrator.store import fsync, new_tmp, storage_errors, verify_folder

__all__ = ["Dtype", "write_gguf"]

Dtype = Literal["f32", "f16", "bf16"]
"""The type of the matrices; norms, biases and learned positions stay f32, as in llama.cpp's own files."""

_TOKENIZER_FIXED: Mapping[str, Mapping[str, Any]] = {
    "model": {
        "type": "BPE",
        "dropout": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "byte_fallback": False,
        "ignore_merges": False,
    },
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
}
"""Settings of a tokenizer.json that llama.cpp's split and merges have in one form only."""

_ARCHITECTURES: Mapping[FamilyName, gguf.MODEL_ARCH] = {"llama": gguf.MODEL_ARCH.LLAMA, "gpt2": gguf.MODEL_ARCH.GPT2}

_GPT2_TRANSPOSED = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
"""transformers keeps GPT-2's projections as [in, out]."""


@dataclass(frozen=True)
class _Stored:
    """How a type is named in the file."""

    torch: torch.dtype
    tensor: gguf.GGMLQuantizationType
    file: gguf.LlamaFileType


_TYPES: Mapping[Dtype, _Stored] = {
    "f32": _Stored(torch.float32, gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": _Stored(torch.float16, gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": _Stored(torch.bfloat16, gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
}


@dataclass(frozen=True)
class _Export:
    """What of the folder goes into the file."""

    name: str
    config: ModelConfig
    tokenizer: Tokenizer
    ends: Mapping[str, int]
    """Ids of the tokens bos, eos and pad; eot, which ends a turn of a chat, where there is one."""
    chat_template: Any
    """Jinja, a list of named ones, or None."""
    tensors: Mapping[str, Tensor]
    """Under llama.cpp's names, in its layout."""


def write_gguf(export: Path, into: Path, *, dtype: Dtype = "f32") -> Path:
    """Write a committed export as the file `into`, whole or not at all; the same export gives the same bytes.

    The caller holds the lock of what it writes. Returns `into`; a file of that name is replaced.

    Raises:
        StoreError: the export is not committed or was altered, is no decoder, has a tokenizer that llama.cpp would
            not split alike or weights that do not fit f16, or storage failed.
    """
    source = _read(export)
    with storage_errors(into, doing=f"writing {into.name}"):
        into.parent.mkdir(parents=True, exist_ok=True)
        for left in into.parent.glob(f"{into.name}.tmp-*"):
            left.unlink()
        tmp = new_tmp(into)
        try:
            _write(tmp, source, _TYPES[dtype])
            fsync(tmp)
            tmp.replace(into)
            fsync(into.parent)
        finally:
            tmp.unlink(missing_ok=True)
    return into


def _read(export: Path) -> _Export:
    manifest = read_export_manifest(export)
    if manifest.family not in _ARCHITECTURES:
        raise StoreError(
            f"{export} holds a {manifest.family} with the head {manifest.head.kind!r}; only decoders become GGUF files",
            fix="use the folder as it is: `slipway serve` and transformers read it",
        )
    verify_folder(export)
    said = _read_json(export, CONFIG)
    try:
        config = from_hf_config(said)
    except ValueError as error:
        raise broken(export, f"{CONFIG} is not a model of ours: {error}") from None
    return _Export(
        name=manifest.name,
        config=config,
        tokenizer=_usable_tokenizer(export),
        ends=_ends(said, _read_json(export, "generation_config.json"), manifest.eos_token_id),
        chat_template=_read_json(export, "tokenizer_config.json").get("chat_template"),
        tensors=_tensors(export, config),
    )


def _ends(config: Mapping[str, Any], generation: Mapping[str, Any], eos: int) -> dict[str, int]:
    """Left out, llama.cpp takes token 11 for bos and eos. A text of ours begins where the one before it ended."""
    bos, pad = config.get("bos_token_id"), generation.get("pad_token_id")
    ends = {"bos": eos if bos is None else bos, "eos": eos, "pad": eos if pad is None else pad}
    stops = generation.get("eos_token_id")
    turns = [i for i in stops if i != eos] if isinstance(stops, list) else []
    return ends | ({"eot": turns[0]} if turns else {})


def _usable_tokenizer(export: Path) -> Tokenizer:
    tokenizer = read_tokenizer(export)
    if reason := _unlike_gpt2(json.loads(tokenizer.to_str()), tokenizer):
        raise StoreError(
            f"the tokenizer of {export} cannot be written to a GGUF file: {reason}",
            fix="train one with data.tokenizer.train: bpe, or use the folder as it is: `slipway serve` reads it",
        )
    return tokenizer


def _read_json(export: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads((export / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise broken(export, f"{name} is not readable: {error}") from None
    if not isinstance(value, dict):
        raise broken(export, f"{name} holds no JSON object")
    return value


def _tensors(export: Path, config: ModelConfig) -> dict[str, Tensor]:
    names = gguf.get_tensor_name_map(_ARCHITECTURES[config.family], config.layers)
    tensors = {}
    for theirs, tensor in read_tensors(export / WEIGHTS).items():
        name = names.get_name(theirs, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise broken(export, f"llama.cpp has no tensor for {theirs!r} of {WEIGHTS}")
        tensors[name] = _laid_out(theirs, tensor, config)
    return tensors


def _laid_out(name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
    """A tensor of model.safetensors as llama.cpp wants it: [out, in], and the two of a rotary pair side by side.

    Rotary dimensions i and i + K/2 of a head are a pair in the export, 2 i and 2 i + 1 in llama.cpp.
    """
    module, _, leaf = name.rpartition(".")
    if config.family == "gpt2":
        return tensor.T if leaf == "weight" and module.endswith(_GPT2_TRANSPOSED) else tensor
    heads = {"q_proj": config.heads, "k_proj": config.kv_heads}.get(module.rpartition(".")[2])
    if heads is None:
        return tensor
    sides_H2KI = tensor.view(heads, 2, config.head_width // 2, -1)
    return sides_H2KI.transpose(1, 2).reshape(tensor.shape)


def _unlike_gpt2(parts: Mapping[str, Any], tokenizer: Tokenizer) -> str | None:
    """Why llama.cpp would read text as other tokens, if it would: it has no message for that, only worse answers."""
    for part, fixed in _TOKENIZER_FIXED.items():
        for key, only in fixed.items():
            found = (parts[part] or {}).get(key)
            if found != only and not (only is None and found == ""):
                return f"it is not byte-level BPE as GPT-2's: {part}.{key} is {found!r}, not {only!r}"
    if parts["normalizer"] is not None:
        return f"it alters text before it is split (normalizer {parts['normalizer']['type']}), llama.cpp does not"
    if missing := set(pre_tokenizers.ByteLevel.alphabet()) - parts["model"]["vocab"].keys():
        return f"it is not byte-level BPE: {len(missing)} of the 256 bytes have no token"
    if not parts["model"]["merges"]:
        return "it has no merges, without which llama.cpp opens no BPE"
    for token in tokenizer.get_added_tokens_decoder().values():
        if not token.special and (token.lstrip or token.rstrip or token.single_word):
            return f"its added token {token.content!r} takes blanks with it or stands alone, llama.cpp's do not"
    return None


def _write(path: Path, source: _Export, stored: _Stored) -> None:
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[_ARCHITECTURES[source.config.family]])
    try:
        writer.add_name(source.name)
        writer.add_file_type(stored.file)
        _add_shape(writer, source.config)
        _add_tokenizer(writer, source)
        types = {name: _type_of(name, tensor, stored) for name, tensor in source.tensors.items()}
        for name, tensor in source.tensors.items():
            size_bytes = tensor.numel() * types[name].torch.itemsize
            writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), size_bytes, raw_dtype=types[name].tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in source.tensors.items():
            writer.write_tensor_data(_encoded(name, tensor, types[name]))
    finally:
        writer.close()


def _type_of(name: str, tensor: Tensor, stored: _Stored) -> _Stored:
    return _TYPES["f32"] if tensor.dim() == 1 or name == "position_embd.weight" else stored


def _encoded(name: str, tensor: Tensor, stored: _Stored) -> npt.NDArray[Any]:
    """The bytes of a tensor in the file's type."""
    cast = tensor.to(stored.torch).contiguous()
    if stored.torch == torch.float16 and not cast.isfinite().all():
        raise StoreError(
            f"{name} does not fit f16: its largest value is {tensor.abs().max().item():.3g}, f16 ends at 65504",
            fix="write bf16 or f32",
        )
    encoded: npt.NDArray[Any] = cast.view(torch.uint8).numpy()
    return encoded


def _add_shape(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.hidden)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_vocab_size(config.vocab_size)
    if config.family == "gpt2":
        writer.add_layer_norm_eps(config.norm_eps)
        return
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.head_width)
    writer.add_rope_freq_base(config.rope_theta)


def _add_tokenizer(writer: gguf.GGUFWriter, source: _Export) -> None:
    tokens, types = _vocabulary(source.tokenizer, source.config.vocab_size)
    merges = json.loads(source.tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    # llama.cpp's name for the split of GPT-2 (Radford et al. 2019), which is what `ByteLevel` with its expression does.
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([f"{left} {right}" for left, right in merges])
    writer.add_bos_token_id(source.ends["bos"])
    writer.add_eos_token_id(source.ends["eos"])
    writer.add_pad_token_id(source.ends["pad"])
    if "eot" in source.ends:
        writer.add_eot_token_id(source.ends["eot"])
    writer.add_add_bos_token(False)
    if source.chat_template:
        writer.add_chat_template(source.chat_template)


def _vocabulary(tokenizer: Tokenizer, size: int) -> tuple[list[str], list[int]]:
    """Token and type of every id of the model; ids without a token are padding, under names that nothing else has."""
    names: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    added = tokenizer.get_added_tokens_decoder()
    by_id = {i: name for name, i in names.items()}
    tokens, types = [], []
    for i in range(size):
        if i in added:
            kind = gguf.TokenType.CONTROL if added[i].special else gguf.TokenType.USER_DEFINED
        else:
            kind = gguf.TokenType.NORMAL if i in by_id else gguf.TokenType.UNUSED
        tokens.append(by_id.get(i) or _unused_name(i, names))
        types.append(int(kind))
    return tokens, types


def _unused_name(i: int, taken: Mapping[str, int]) -> str:
    name = f"[PAD{i}]"
    while name in taken:
        name = f"[{name}]"
    return name
