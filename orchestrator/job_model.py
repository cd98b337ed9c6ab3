"""The `model` section of a job: which network, and its sizes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from model.config import ModelConfig, default_hidden
from orchestrator.job_data import MIN_BYTE_LEVEL_VOCAB
from orchestrator.job_section import Fraction, Positive, Section

Family = Literal["llama", "gpt2", "bert"]


class Model(Section):
    """The network; sizes that follow from others are derived unless given."""

    kind: Literal["gpt", "bert", "custom"] = "gpt"
    """`gpt`: a decoder, `bert`: an encoder, `custom`: a `torch.nn.Module` of your own, named in `class`."""
    form: Literal["llama", "gpt2"] = "llama"
    """gpt: RoPE, RMSNorm, SwiGLU and grouped queries, or learned positions, LayerNorm and GELU."""
    layers: Positive = 4
    width: Positive = 256
    heads: Positive = 4
    kv_heads: Positive | None = None
    """Key/value heads (grouped-query attention, llama only); null: as many as heads."""
    hidden: Positive | None = None
    """Width inside the feed-forward layers; null: llama 8/3 of the width, rounded up to 64, the others 4 times it."""
    context: Annotated[int, Field(ge=2)] = 256
    """Tokens in a sample, and the most that the served model attends to."""
    vocab_size: Positive | None = None
    """Rows of the token table; null: the tokenizer's size."""
    positions: Literal["rope", "learned", "sinusoidal"] | None = None
    """How places are told apart; null: llama `rope`, the others `learned`; gpt2 and bert also take `sinusoidal`
    (Vaswani et al. 2017)."""
    dropout: Fraction = 0.0
    rope_theta: float = Field(default=10000.0, gt=0.0)
    norm_eps: float | None = Field(default=None, gt=0.0)
    """Added to the variance in the norms; null: 1e-5, of bert 1e-12."""
    tie_embeddings: bool = True
    class_: str | None = Field(default=None, alias="class", pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    """custom: the module's class, as `package.module:Class`."""
    settings: dict[str, Any] = {}
    """custom: the keyword arguments of the class."""

    @model_validator(mode="after")
    def _makes_a_model(self) -> Model:
        if (self.kind == "custom") != (self.class_ is not None):
            raise ValueError("model.class names the module of kind custom, and goes with it only")
        if self.settings and self.kind != "custom":
            raise ValueError("model.settings goes with kind custom only")
        if self.kind != "custom":
            self.config(vocab_size=self.vocab_size or MIN_BYTE_LEVEL_VOCAB)
        return self

    @property
    def family(self) -> Family:
        """The network's family; of kinds gpt and bert."""
        return "bert" if self.kind == "bert" else self.form

    def config(self, vocab_size: int) -> ModelConfig:
        """The network's configuration for a tokenizer of `vocab_size`.

        Raises:
            ValueError: heads do not divide the width, or the like.
        """
        family = self.family
        return ModelConfig(
            family=family,
            vocab_size=self.vocab_size or vocab_size,
            layers=self.layers,
            width=self.width,
            heads=self.heads,
            kv_heads=self.kv_heads or self.heads,
            hidden=self.hidden or default_hidden(self.width, family),
            context=self.context,
            rope_theta=self.rope_theta,
            norm_eps=self.norm_eps or (1e-12 if family == "bert" else 1e-5),
            dropout=self.dropout,
            tie_embeddings=self.tie_embeddings,
            positions=self.positions or ("rope" if family == "llama" else "learned"),
        )
