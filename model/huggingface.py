"""Our decoder in the Hugging Face Llama layout, and back: a mapping of names, which leaves values alone.

Every function is pure; reading and writing folders is the caller's business.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from model.config import ModelConfig

_WEIGHTS = {
    "embed": "model.embed_tokens",
    "blocks.#.attention_norm": "model.layers.#.input_layernorm",
    "blocks.#.attention.q": "model.layers.#.self_attn.q_proj",
    "blocks.#.attention.k": "model.layers.#.self_attn.k_proj",
    "blocks.#.attention.v": "model.layers.#.self_attn.v_proj",
    "blocks.#.attention.out": "model.layers.#.self_attn.o_proj",
    "blocks.#.mlp_norm": "model.layers.#.post_attention_layernorm",
    "blocks.#.mlp.gate": "model.layers.#.mlp.gate_proj",
    "blocks.#.mlp.up": "model.layers.#.mlp.up_proj",
    "blocks.#.mlp.down": "model.layers.#.mlp.down_proj",
    "norm": "model.norm",
    "head": "lm_head",
}
"""Ours to theirs; # is the layer. Both store [out, in], and pair rotary dimensions i and i + K/2."""

_SIZES = {
    "vocab_size": "vocab_size",
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
}
"""Ours to theirs, where `from_hf_config` accepts no default."""

_FIXED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
"""Settings of Llama's that our decoder has in one form only, which is also their default."""

_ABSENT = {"rope_scaling": None, "quantization_config": None}
"""Settings that our decoder does not have."""


def to_hf_config(
    config: ModelConfig, *, bos_token_id: int | None, eos_token_id: int | None, dtype: str
) -> dict[str, Any]:
    """The contents of `config.json`. `dtype` is the weights' type in the file, such as "bfloat16".

    Positions are given twice: transformers 4 reads `rope_theta`, transformers 5 and vLLM `rope_parameters`.
    """
    sizes = {theirs: getattr(config, ours) for ours, theirs in _SIZES.items()}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **sizes,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        **_FIXED,
        "attention_dropout": config.dropout,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "dtype": dtype,
    }


def from_hf_config(data: Mapping[str, Any]) -> ModelConfig:
    """The model that a Llama `config.json` describes; what it leaves out has transformers' default.

    Raises:
        ValueError: a size is missing, or the model is not one of ours; the message names the setting.
    """
    if data.get("model_type") != "llama":
        raise ValueError(f"model_type {data.get('model_type')!r} is not supported; only 'llama' is")
    for key, only in (_FIXED | _ABSENT).items():
        if data.get(key, only) != only:
            raise ValueError(f"{key} {data[key]!r} is not supported; only {only!r} is")
    if missing := [theirs for theirs in _SIZES.values() if theirs not in data]:
        raise ValueError(f"{', '.join(missing)} missing from config.json")
    config = ModelConfig(
        **{ours: data[theirs] for ours, theirs in _SIZES.items()},
        kv_heads=data.get("num_key_value_heads") or data["num_attention_heads"],
        context=data.get("max_position_embeddings", 2048),
        norm_eps=data.get("rms_norm_eps", 1e-6),
        rope_theta=_rope_theta(data),
        dropout=data.get("attention_dropout", 0.0),
        tie_embeddings=data.get("tie_word_embeddings", False),
    )
    head_dim = data.get("head_dim") or config.head_width
    if head_dim != config.head_width:
        raise ValueError(f"head_dim {head_dim} is not supported; only hidden_size / num_attention_heads is")
    return config


def to_hf_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`GPT.state_dict()` under Llama's names. The tensors are shared, not copied; a tied head has no entry.

    Raises:
        ValueError: a name that no decoder of ours has.
    """
    return _renamed(state, _WEIGHTS)


def from_hf_state(state: Mapping[str, Tensor], *, tie_embeddings: bool) -> dict[str, Tensor]:
    """Llama's weights under our names, for `GPT.load_state_dict`, which checks that none is missing.

    With `tie_embeddings`, an `lm_head` is dropped: some writers store the table twice. So are the rotary
    frequencies in files of before 2024: they follow from the config.

    Raises:
        ValueError: a name that no Llama without biases has.
    """
    kept = {name: tensor for name, tensor in state.items() if not name.endswith(".rotary_emb.inv_freq")}
    if tie_embeddings:
        kept.pop("lm_head.weight", None)
    return _renamed(kept, {theirs: ours for ours, theirs in _WEIGHTS.items()})


def _rope_theta(data: Mapping[str, Any]) -> float:
    """The base of the rotary angles; `rope_parameters` wins over `rope_theta`, as in transformers 5."""
    rope = data.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise ValueError(f"rope_type {rope['rope_type']!r} is not supported; only 'default' is")
    if (factor := rope.get("partial_rotary_factor", data.get("partial_rotary_factor", 1.0))) != 1.0:
        raise ValueError(f"partial_rotary_factor {factor} is not supported; only 1.0 is")
    return float(rope.get("rope_theta", data.get("rope_theta", 10000.0)))


def _renamed(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """`state` under the names that `names` gives, the layer's number kept."""
    renamed = {}
    for name, tensor in state.items():
        module, _, leaf = name.rpartition(".")
        layer = re.search(r"\d+", module)
        target = names.get(re.sub(r"\d+", "#", module))
        if target is None or leaf != "weight":
            raise ValueError(f"weight {name!r} is not supported: it has no counterpart in this layout")
        renamed[f"{target.replace('#', layer[0] if layer else '')}.weight"] = tensor
    return renamed
