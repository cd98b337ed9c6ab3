"""The shape of a model, with its parameter and FLOP counts. No torch: `plan` uses this module.

Symbols: L layers, D width, H heads, G key/value heads, K head width, F hidden width, V vocabulary, T context.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

_HIDDEN_MULTIPLE = 64


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder in today's standard form (RoPE, RMSNorm, SwiGLU, grouped queries; Touvron et al. 2023).

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
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    dropout: float = 0.0
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        """Refuse numbers that do not make a model."""
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        if self.head_width % 2:
            raise ValueError(f"width {self.width} / heads {self.heads} is odd; rotary positions need an even one")

    @property
    def head_width(self) -> int:
        """K: numbers in one head."""
        return self.width // self.heads

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the token table, and of the output projection where it is untied."""
        return self.vocab_size * self.width * (1 if self.tie_embeddings else 2)

    @property
    def layer_parameters(self) -> int:
        """Parameters of one block: q and o, k and v, three SwiGLU projections, two norms."""
        attention = 2 * self.width * self.width + 2 * self.width * self.kv_heads * self.head_width
        return attention + 3 * self.width * self.hidden + 2 * self.width

    @property
    def parameters(self) -> int:
        """All trained parameters (tied weights counted once)."""
        return self.embedding_parameters + self.layers * self.layer_parameters + self.width

    @property
    def matmul_parameters(self) -> int:
        """Parameters that multiply activations: all but the norms and the input table's look-up."""
        return self.layers * (self.layer_parameters - 2 * self.width) + self.vocab_size * self.width

    def training_flops_per_token(self, context: int | None = None) -> int:
        """FLOPs of forward and backward: 6 N + 12 L D T (Chowdhery et al. 2022, appendix B)."""
        length = self.context if context is None else context
        return 6 * self.matmul_parameters + 12 * self.layers * self.width * length

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for checkpoints."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`."""
        return cls(**data)


def default_hidden(width: int) -> int:
    """SwiGLU's hidden width with the parameters of a 4x MLP: 8/3 of the width (Shazeer 2020), rounded up."""
    return -(-(8 * width // 3) // _HIDDEN_MULTIPLE) * _HIDDEN_MULTIPLE
