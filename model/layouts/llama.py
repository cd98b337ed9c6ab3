"""Our llama in the layout of `LlamaForCausalLM`: names differ, values do not."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from model.config import HeadConfig, ModelConfig
from model.layouts.layout import (
    USUAL_SIZES,
    Layout,
    Settings,
    State,
    inverse,
    renamed,
    require_keys,
    require_only,
    their_sizes,
    with_leaves,
    without_copy,
)

_NAMES = with_leaves(
    {
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
)
"""Ours to theirs; # is the layer. Both store [out, in], and pair rotary dimensions i and i + K/2."""

_FIXED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
"""Settings of Llama's that our decoder has in one form only, which is also their default."""


def _to_settings(config: ModelConfig) -> dict[str, Any]:
    """Positions are given twice: transformers 4 reads `rope_theta`, transformers 5 and vLLM `rope_parameters`."""
    return {
        **their_sizes(config, USUAL_SIZES),
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        **_FIXED,
        "attention_dropout": config.dropout,
    }


def _from_settings(data: Settings) -> ModelConfig:
    require_only(data, {key: (only,) for key, only in (_FIXED | {"rope_scaling": None}).items()})
    config = ModelConfig(
        family="llama",
        **require_keys(data, USUAL_SIZES),
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


def _rope_theta(data: Settings) -> float:
    """The base of the rotary angles; `rope_parameters` wins over `rope_theta`, as in transformers 5."""
    rope: Settings = data.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise ValueError(f"rope_type {rope['rope_type']!r} is not supported; only 'default' is")
    if (factor := rope.get("partial_rotary_factor", data.get("partial_rotary_factor", 1.0))) != 1.0:
        raise ValueError(f"partial_rotary_factor {factor} is not supported; only 1.0 is")
    return float(rope.get("rope_theta", data.get("rope_theta", 10000.0)))


def _to_state(state: State, _config: ModelConfig, _head: HeadConfig) -> dict[str, Tensor]:
    return renamed(state, _NAMES)


def _canonical(state: State, config: ModelConfig, _head: HeadConfig) -> dict[str, Tensor]:
    """Files of before 2024 hold the rotary frequencies, which follow from the config."""
    kept = {name: tensor for name, tensor in state.items() if not name.endswith(".rotary_emb.inv_freq")}
    if config.tie_embeddings:
        return without_copy(kept, copy="lm_head.weight", of="model.embed_tokens.weight")
    return kept


def _from_state(state: State, _config: ModelConfig, _head: HeadConfig) -> dict[str, Tensor]:
    return renamed(state, inverse(_NAMES))


LAYOUT = Layout(
    model_type="llama",
    architectures={"lm": "LlamaForCausalLM"},
    to_settings=_to_settings,
    from_settings=_from_settings,
    to_state=_to_state,
    canonical=_canonical,
    from_state=_from_state,
)
