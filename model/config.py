"""The shape of a model and of its head, with parameter and FLOP counts. No torch: `plan` uses this module.

Symbols: L layers, D width, H heads, G key/value heads, K head width, F hidden width, V vocabulary, T context.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

FamilyName = Literal["llama", "gpt2", "bert"]
Positions = Literal["rope", "learned", "sinusoidal"]
HeadKind = Literal[
    "lm", "mlm", "pretraining", "classification", "token-classification", "question-answering", "embedding"
]

LABELLED: tuple[HeadKind, ...] = ("classification", "token-classification")
"""Heads that tell classes apart."""

_HIDDEN_MULTIPLE = 64
_BY_FAMILY: Any = None
"""Stands for the family's own value until `ModelConfig.__post_init__` puts it there."""


@dataclass(frozen=True)
class _Form:
    """What a family's name decides."""

    positions: tuple[Positions, ...]
    """Those that it can have; the first is its own."""
    norm_eps: float
    heads: tuple[HeadKind, ...]
    biased: bool


_ENCODER_HEADS: tuple[HeadKind, ...] = ("mlm", "pretraining", *LABELLED, "question-answering", "embedding")
_FORMS: Mapping[FamilyName, _Form] = {
    "llama": _Form(positions=("rope",), norm_eps=1e-5, heads=("lm",), biased=False),
    "gpt2": _Form(positions=("learned", "sinusoidal"), norm_eps=1e-5, heads=("lm",), biased=True),
    "bert": _Form(positions=("learned", "sinusoidal"), norm_eps=1e-12, heads=_ENCODER_HEADS, biased=True),
}


@dataclass(frozen=True)
class HeadConfig:
    """What stands on a backbone: what the model is trained to say.

    Raises:
        ValueError: classes without labels, labels without classes, or a label twice.
    """

    kind: HeadKind = "lm"
    labels: tuple[str, ...] = ()
    """Names of the classes, in the order of the logits."""

    def __post_init__(self) -> None:
        """Refuse labels that do not fit."""
        if self.kind in LABELLED and len(self.labels) < 2:
            raise ValueError(f"the head {self.kind!r} needs at least two labels, not {list(self.labels)}")
        if self.kind not in LABELLED and self.labels:
            raise ValueError(f"the head {self.kind!r} has no labels, yet {len(self.labels)} are given")
        if doubled := sorted({label for label in self.labels if self.labels.count(label) > 1}):
            raise ValueError(f"labels are given twice: {', '.join(doubled)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for checkpoints."""
        return {"kind": self.kind, "labels": list(self.labels)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> HeadConfig:
        """The inverse of `to_dict`."""
        return cls(kind=data["kind"], labels=tuple(data["labels"]))


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A backbone of one of three families.

    llama: a decoder in today's standard form (RoPE, RMSNorm, SwiGLU, grouped queries; Touvron et al. 2023).
    gpt2: a decoder with LayerNorm before each branch, GELU and biases (Radford et al. 2019).
    bert: an encoder with segments and LayerNorm after each branch (Devlin et al. 2018).

    Raises:
        ValueError: the numbers do not make a model; the message names the field.
    """

    vocab_size: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    hidden: int
    context: int
    family: FamilyName = "llama"
    positions: Positions = _BY_FAMILY
    """Left out: rope for llama, learned for gpt2 and bert. Sinusoidal ones (Vaswani et al. 2017) are not trained."""
    rope_theta: float = 10000.0
    norm_eps: float = _BY_FAMILY
    """Left out: 1e-5; 1e-12 for bert."""
    dropout: float = 0.0
    tie_embeddings: bool = True
    segments: int = 2
    """Kinds of segment that bert tells apart: first and second sentence."""

    def __post_init__(self) -> None:
        """Fill in what the family decides; refuse numbers that do not make a model."""
        if self.family not in _FORMS:
            raise ValueError(f"family {self.family!r} does not exist; there are {', '.join(_FORMS)}")
        if self.positions is None:
            object.__setattr__(self, "positions", self._form.positions[0])
        if self.norm_eps is None:
            object.__setattr__(self, "norm_eps", self._form.norm_eps)
        self._check_sizes()
        self._check_family()

    def _check_sizes(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        if self.positions == "rope" and self.head_width % 2:
            raise ValueError(f"width {self.width} / heads {self.heads} is odd; rotary positions need an even one")

    def _check_family(self) -> None:
        if self.positions not in self._form.positions:
            choices = " or ".join(self._form.positions)
            raise ValueError(f"positions {self.positions!r} do not exist for {self.family}; choose {choices}")
        if self.family != "llama" and self.kv_heads != self.heads:
            raise ValueError(f"kv_heads {self.kv_heads} below heads {self.heads} exists for llama only")
        if self.family == "bert" and not self.tie_embeddings:
            raise ValueError("tie_embeddings false does not exist for bert: its masked-LM head uses the word table")

    @property
    def _form(self) -> _Form:
        return _FORMS[self.family]

    @property
    def is_decoder(self) -> bool:
        """Whether each token sees only itself and those before it."""
        return "lm" in self._form.heads

    @property
    def biased(self) -> bool:
        """Whether projections have biases, norms are LayerNorms, and the MLP is GELU's: llama's alone is not so."""
        return self._form.biased

    @property
    def head_width(self) -> int:
        """K: numbers in one head."""
        return self.width // self.heads

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the tables: tokens (twice where the output projection is untied), positions, segments."""
        rows = self.vocab_size * (1 if self.tie_embeddings else 2)
        rows += self.context if self.positions == "learned" else 0
        rows += self.segments if self.family == "bert" else 0
        return rows * self.width

    @property
    def layer_parameters(self) -> int:
        """Parameters of one block: its matrices, their biases, two norms."""
        biases = 2 * self.width + 2 * self.kv_heads * self.head_width + self.hidden + self.width if self.biased else 0
        return self._layer_matrices + biases + 2 * self._norm_parameters

    @property
    def _layer_matrices(self) -> int:
        """q and o, k and v; three projections of SwiGLU or two around GELU."""
        attention = 2 * self.width * self.width + 2 * self.width * self.kv_heads * self.head_width
        return attention + (2 if self.biased else 3) * self.width * self.hidden

    @property
    def _norm_parameters(self) -> int:
        return self.width * (2 if self.biased else 1)

    @property
    def parameters(self) -> int:
        """All trained parameters of a decoder, or of an encoder below its head (tied weights counted once)."""
        return self.embedding_parameters + self.layers * self.layer_parameters + self._norm_parameters

    @property
    def matmul_parameters(self) -> int:
        """Parameters that multiply every token's activations: matrices, without tables that are looked up.

        A decoder's output projection is among them; what an encoder's head multiplies, `head_matmul_parameters` says.
        """
        return self.layers * self._layer_matrices + (self.vocab_size * self.width if self.is_decoder else 0)

    def training_flops_per_token(self, context: int | None = None) -> int:
        """FLOPs of forward and backward: 6 N + 12 L D T (Chowdhery et al. 2022, appendix B)."""
        length = self.context if context is None else context
        return 6 * self.matmul_parameters + 12 * self.layers * self.width * length

    def head_parameters(self, head: HeadKind, num_labels: int = 0) -> int:
        """Parameters that a head adds to `parameters`, the pooler included where the head has one.

        Raises:
            ValueError: this family has no such head.
        """
        self.check_head(head)
        pooler = self.width * (self.width + 1)
        masked_lm = self.width * (self.width + 1) + 2 * self.width + self.vocab_size
        return {
            "lm": 0,
            "mlm": masked_lm,
            "pretraining": masked_lm + pooler + 2 * (self.width + 1),
            "classification": pooler + num_labels * (self.width + 1),
            "token-classification": num_labels * (self.width + 1),
            "question-answering": 2 * (self.width + 1),
            "embedding": 0,
        }[head]

    def head_matmul_parameters(self, head: HeadKind, num_labels: int = 0) -> int:
        """Parameters of a head that multiply each token it judges; masked LM judges the masked tokens alone.

        What is done once a row (pooler, classes of a row) is left out. Raises as `head_parameters` does.
        """
        self.check_head(head)
        if head in ("mlm", "pretraining"):
            return self.width * (self.width + self.vocab_size)
        return self.width * {"token-classification": num_labels, "question-answering": 2}.get(head, 0)

    def check_head(self, head: HeadKind) -> None:
        """Raise a ValueError that names both if this family cannot carry the head."""
        if head not in self._form.heads:
            choices = ", ".join(self._form.heads)
            raise ValueError(f"{self.family} does not carry the head {head!r}; it carries {choices}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for checkpoints."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`; data of before there were families is a llama's."""
        return cls(**data)


def default_hidden(width: int, family: FamilyName = "llama") -> int:
    """The MLP's hidden width: four times the width; for SwiGLU 8/3 of it, rounded up to a multiple of 64.

    Both have the same number of parameters (Shazeer 2020).
    """
    if _FORMS[family].biased:
        return 4 * width
    return -(-(8 * width // 3) // _HIDDEN_MULTIPLE) * _HIDDEN_MULTIPLE
