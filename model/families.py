"""The families of networks, in one table: how each is built, and how it is laid out for other libraries.

A new family is a name with its counts in `config`, a module, a layout in `layouts/`, and an entry here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from model.config import FamilyName, HeadConfig, HeadKind, ModelConfig
from model.gpt import GPT
from model.heads import (
    Embedder,
    EncoderHead,
    MaskedLM,
    QuestionAnswering,
    SequenceClassifier,
    TokenClassifier,
)
from model.layouts import bert, gpt2, llama
from model.layouts.layout import Layout

LM = HeadConfig("lm")
"""The next token: a decoder's own projection."""

Network = GPT | EncoderHead
"""Whatever `build` makes: has `config`, `initialise(seed)`, and a `forward`."""
BuildNetwork = Callable[[ModelConfig, HeadConfig], Network]


@dataclass(frozen=True)
class Family:
    """One family."""

    name: FamilyName
    heads: Mapping[HeadKind, BuildNetwork]
    """The whole network by the head that it ends in."""
    layout: Layout


_DECODER: Mapping[HeadKind, BuildNetwork] = {"lm": lambda config, _head: GPT(config)}
_ENCODER: Mapping[HeadKind, BuildNetwork] = {
    "mlm": MaskedLM,
    "pretraining": MaskedLM,
    "classification": SequenceClassifier,
    "token-classification": TokenClassifier,
    "question-answering": QuestionAnswering,
    "embedding": Embedder,
}

FAMILIES: Mapping[FamilyName, Family] = {
    family.name: family
    for family in (
        Family("llama", _DECODER, llama.LAYOUT),
        Family("gpt2", _DECODER, gpt2.LAYOUT),
        Family("bert", _ENCODER, bert.LAYOUT),
    )
}


def build(config: ModelConfig, head: HeadConfig = LM) -> Network:
    """The network, whose weights have no meaning before `initialise` or `load_state_dict`.

    Raises:
        ValueError: this family does not carry this head.
    """
    config.check_head(head.kind)
    return FAMILIES[config.family].heads[head.kind](config, head)
