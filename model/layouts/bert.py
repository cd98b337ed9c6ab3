"""Our bert and its heads in the layout of `BertModel` and the `BertFor...` around it: names differ, values do not."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from model.config import HeadConfig, ModelConfig
from model.layouts.layout import (
    FIXED_POSITIONS,
    USUAL_SIZES,
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

_MODULES = {
    "backbone.embed": "bert.embeddings.word_embeddings",
    "backbone.position.table": "bert.embeddings.position_embeddings",
    "backbone.segment": "bert.embeddings.token_type_embeddings",
    "backbone.embed_norm": "bert.embeddings.LayerNorm",
    "backbone.blocks.#.attention.q": "bert.encoder.layer.#.attention.self.query",
    "backbone.blocks.#.attention.k": "bert.encoder.layer.#.attention.self.key",
    "backbone.blocks.#.attention.v": "bert.encoder.layer.#.attention.self.value",
    "backbone.blocks.#.attention.out": "bert.encoder.layer.#.attention.output.dense",
    "backbone.blocks.#.attention_norm": "bert.encoder.layer.#.attention.output.LayerNorm",
    "backbone.blocks.#.mlp.up": "bert.encoder.layer.#.intermediate.dense",
    "backbone.blocks.#.mlp.down": "bert.encoder.layer.#.output.dense",
    "backbone.blocks.#.mlp_norm": "bert.encoder.layer.#.output.LayerNorm",
    "backbone.pooler": "bert.pooler.dense",
    "dense": "cls.predictions.transform.dense",
    "norm": "cls.predictions.transform.LayerNorm",
    "next_sentence": "cls.seq_relationship",
    "classify": "classifier",
    "span": "qa_outputs",
}
_NAMES = with_leaves(_MODULES) | {"bias": "cls.predictions.bias"}
"""Ours to theirs; # is the layer."""

_WORDS = "bert.embeddings.word_embeddings.weight"
_POSITIONS = "bert.embeddings.position_embeddings.weight"

_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("gelu",),
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
    "problem_type": (None, "single_label_classification"),
    FIXED_POSITIONS: (None, "sinusoidal"),
}

_UNUSED = {
    "mlm": ("bert.pooler.", "cls.seq_relationship."),
    "token-classification": ("bert.pooler.",),
    "question-answering": ("bert.pooler.",),
    "embedding": ("bert.pooler.",),
}
"""What files of BERT hold beside what a head reads, and `transformers` passes over too."""


def _to_settings(config: ModelConfig) -> dict[str, Any]:
    return {
        **their_sizes(config, USUAL_SIZES),
        "hidden_act": "gelu",
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
        "max_position_embeddings": config.context,
        "type_vocab_size": config.segments,
        "layer_norm_eps": config.norm_eps,
        "position_embedding_type": "absolute",
        "is_decoder": False,
        **position_settings(config),
    }


def _from_settings(data: Settings) -> ModelConfig:
    require_only(data, _SUPPORTED)
    sizes = require_keys(data, USUAL_SIZES)
    head_dropout = ["classifier_dropout"] if data.get("classifier_dropout") is not None else []
    return ModelConfig(
        family="bert",
        **sizes,
        kv_heads=sizes["heads"],
        context=data.get("max_position_embeddings", 512),
        positions=data.get(FIXED_POSITIONS) or "learned",
        norm_eps=data.get("layer_norm_eps", 1e-12),
        dropout=one_dropout(data, "hidden_dropout_prob", "attention_probs_dropout_prob", *head_dropout),
        segments=data.get("type_vocab_size", 2),
    )


def _to_state(state: State, config: ModelConfig, head: HeadConfig) -> dict[str, Tensor]:
    theirs = add_sinusoids(renamed(state, _NAMES), config, table=_POSITIONS)
    if head.kind == "embedding":
        return {name.removeprefix("bert."): tensor for name, tensor in theirs.items()}
    return theirs


def _canonical(state: State, _config: ModelConfig, head: HeadConfig) -> dict[str, Tensor]:
    """Google's own files call the norms' weights gamma and beta; a bare `BertModel` has no prefix."""
    bare = not any(name.startswith("bert.") for name in state)
    names = {name: _today(name, bare=bare) for name in state}
    unused = ("bert.embeddings.position_ids", *_UNUSED.get(head.kind, ()))
    kept = {today: state[name] for name, today in names.items() if not today.startswith(unused)}
    if head.kind in ("mlm", "pretraining"):
        kept = without_copy(kept, copy="cls.predictions.decoder.weight", of=_WORDS)
        kept = without_copy(kept, copy="cls.predictions.decoder.bias", of="cls.predictions.bias")
    if head.kind == "embedding":
        return {name.removeprefix("bert."): tensor for name, tensor in kept.items()}
    return kept


def _today(name: str, *, bare: bool) -> str:
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    return f"bert.{name}" if bare and name.startswith(("embeddings.", "encoder.", "pooler.")) else name


def _from_state(state: State, config: ModelConfig, head: HeadConfig) -> dict[str, Tensor]:
    if head.kind == "embedding":
        state = {f"bert.{name}": tensor for name, tensor in state.items()}
    return renamed(drop_sinusoids(state, config, table=_POSITIONS), inverse(_NAMES))


LAYOUT = Layout(
    model_type="bert",
    architectures={
        "mlm": "BertForMaskedLM",
        "pretraining": "BertForPreTraining",
        "classification": "BertForSequenceClassification",
        "token-classification": "BertForTokenClassification",
        "question-answering": "BertForQuestionAnswering",
        "embedding": "BertModel",
    },
    to_settings=_to_settings,
    from_settings=_from_settings,
    to_state=_to_state,
    canonical=_canonical,
    from_state=_from_state,
)
