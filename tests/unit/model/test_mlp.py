"""The networks that work on each token alone. Shapes: B rows, T tokens, D width."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers.activations import ACT2FN

from model.config import ModelConfig
from model.mlp import make_mlp, make_norm

THEIRS = {"llama": "silu", "gpt2": "gelu_new", "bert": "gelu"}


@pytest.mark.parametrize("family", THEIRS)
def test_activations_are_those_of_hugging_face(family):
    config = ModelConfig(vocab_size=9, layers=1, width=12, heads=2, kv_heads=2, hidden=16, context=4, family=family)
    mlp = make_mlp(config)
    x_BTD = 3 * torch.randn(2, 5, 12)
    active = ACT2FN[THEIRS[family]]
    inner = active(mlp.gate(x_BTD)) * mlp.up(x_BTD) if family == "llama" else active(mlp.up(x_BTD))
    assert_close(mlp(x_BTD), mlp.down(inner), atol=1e-6, rtol=1e-5)
    assert (mlp.up.bias is None) == (family == "llama")
    assert isinstance(make_norm(config), nn.RMSNorm if family == "llama" else nn.LayerNorm)
