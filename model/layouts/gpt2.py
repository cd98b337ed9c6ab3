"""Our gpt2 in the layout of `GPT2LMHeadModel`: matrices lie transposed there, and q, k and v in one.

Shapes: D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from model.config import HeadConfig, ModelConfig
from model.layouts.layout import (
    FIXED_POSITIONS,
    Layout,
    Settings,
    State,
    add_sinusoids,
    drop_sinusoids,
    inverse,
    one_dropout,
    position_settings,
    renamed,
    require_keys,
    require_only,
    their_sizes,
    with_leaves,
    without_copy,
)

_NAMES = with_leaves(
    {
        "embed": "transformer.wte",
        "position.table": "transformer.wpe",
        "blocks.#.attention_norm": "transformer.h.#.ln_1",
        "blocks.#.attention.qkv": "transformer.h.#.attn.c_attn",
        "blocks.#.attention.out": "transformer.h.#.attn.c_proj",
        "blocks.#.mlp_norm": "transformer.h.#.ln_2",
        "blocks.#.mlp.up": "transformer.h.#.mlp.c_fc",
        "blocks.#.mlp.down": "transformer.h.#.mlp.c_proj",
        "norm": "transformer.ln_f",
        "head": "lm_head",
    }
)
"""Ours, with q, k and v in one, to theirs; # is the layer."""

_TRANSPOSED = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")
"""Weights of their Conv1D, which are [in, out]; ours, as `nn.Linear` has them, are [out, in]."""

_POSITIONS = "transformer.wpe.weight"

_SIZES = {"vocab_size": "vocab_size", "layers": "n_layer", "width": "n_embd", "heads": "n_head"}
"""Ours to theirs, where there is no default."""

_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),  # two names of one function
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "reorder_and_upcast_attn": (False,),
    "add_cross_attention": (False,),
    FIXED_POSITIONS: (None, "sinusoidal"),
}


def _to_settings(config: ModelConfig) -> dict[str, Any]:
    return {
        **their_sizes(config, _SIZES),
        "n_inner": config.hidden,
        "n_positions": config.context,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config.norm_eps,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        **position_settings(config),
    }


def _from_settings(data: Settings) -> ModelConfig:
    require_only(data, _SUPPORTED)
    sizes = require_keys(data, _SIZES)
    return ModelConfig(
        family="gpt2",
        **sizes,
        kv_heads=sizes["heads"],
        hidden=data.get("n_inner") or 4 * sizes["width"],
        context=data.get("n_positions", 1024),
        positions=data.get(FIXED_POSITIONS) or "learned",
        norm_eps=data.get("layer_norm_epsilon", 1e-5),
        dropout=one_dropout(data, "resid_pdrop", "embd_pdrop", "attn_pdrop"),
        tie_embeddings=data.get("tie_word_embeddings", True),
    )


def _to_state(state: State, config: ModelConfig, _head: HeadConfig) -> dict[str, Tensor]:
    fused = {}
    for name, tensor in state.items():
        prefix, found, leaf = name.rpartition(".attention.q.")
        if found:
            parts = (tensor, *(state[f"{prefix}.attention.{part}.{leaf}"] for part in "kv"))
            fused[f"{prefix}.attention.qkv.{leaf}"] = torch.cat(parts)
        elif ".attention.k." not in name and ".attention.v." not in name:
            fused[name] = tensor
    theirs = {
        name: tensor.T.contiguous() if name.endswith(_TRANSPOSED) else tensor
        for name, tensor in renamed(fused, _NAMES).items()
    }
    return add_sinusoids(theirs, config, table=_POSITIONS)


def _canonical(state: State, config: ModelConfig, _head: HeadConfig) -> dict[str, Tensor]:
    """Files of the bare `GPT2Model` lack the prefix; older ones hold the causal mask as buffers."""
    prefix = "" if any(name.startswith("transformer.") for name in state) else "transformer."
    kept = {
        name if name.startswith("lm_head.") else prefix + name: tensor
        for name, tensor in state.items()
        if not name.endswith((".attn.bias", ".attn.masked_bias"))
    }
    if config.tie_embeddings:
        return without_copy(kept, copy="lm_head.weight", of="transformer.wte.weight")
    return kept


def _from_state(state: State, config: ModelConfig, _head: HeadConfig) -> dict[str, Tensor]:
    ours = {}
    for name, tensor in drop_sinusoids(state, config, table=_POSITIONS).items():
        (target,) = renamed({name: tensor}, inverse(_NAMES))
        whole = tensor.T.contiguous() if name.endswith(_TRANSPOSED) else tensor
        if ".qkv." not in target:
            ours[target] = whole
            continue
        for part, piece in zip("qkv", torch.split(whole, config.width), strict=True):
            ours[target.replace(".qkv.", f".{part}.")] = piece.contiguous()
    return ours


LAYOUT = Layout(
    model_type="gpt2",
    architectures={"lm": "GPT2LMHeadModel"},
    to_settings=_to_settings,
    from_settings=_from_settings,
    to_state=_to_state,
    canonical=_canonical,
    from_state=_from_state,
)
