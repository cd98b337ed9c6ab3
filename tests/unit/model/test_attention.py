"""Rotary positions, grouped heads. Shapes: B rows, T tokens, S positions, H heads, K head width."""

import pytest
import torch
from torch.testing import assert_close
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from model.attention import Attention, rotary_tables, rotate
from model.config import ModelConfig

CPU = torch.device("cpu")
CONFIG = ModelConfig(vocab_size=50, layers=1, width=48, heads=6, kv_heads=2, hidden=40, context=32)


@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
@pytest.mark.parametrize("head_width", [2, 6, 64])
def test_angles_are_bit_for_bit_those_of_hugging_face(theta, head_width):
    theirs = LlamaRotaryEmbedding(
        LlamaConfig(head_dim=head_width, rope_parameters={"rope_type": "default", "rope_theta": theta})
    )
    cos_1SK, sin_1SK = theirs(torch.zeros(1), torch.arange(2048)[None])
    cos_S1K, sin_S1K = rotary_tables(2048, head_width, theta=theta, device=CPU)
    assert torch.equal(cos_S1K[:, 0], cos_1SK[0])
    assert torch.equal(sin_S1K[:, 0, head_width // 2 :], sin_1SK[0, :, head_width // 2 :])
    assert torch.equal(sin_S1K[:, 0, : head_width // 2], -sin_1SK[0, :, : head_width // 2])


def test_rotation_keeps_lengths_and_makes_products_depend_on_distance_alone():
    q_K, k_K = torch.randn(2, 8)
    tables = rotary_tables(32, 8, theta=100.0, device=CPU)
    q_SK, k_SK = (rotate(x_K.expand(1, 32, 1, 8), tables)[0, :, 0] for x_K in (q_K, k_K))
    assert_close(q_SK.norm(dim=-1), q_K.norm().expand(32))
    products_SS = q_SK @ k_SK.T
    for distance in range(-31, 32):
        diagonal = products_SS.diagonal(distance)
        assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-5, rtol=1e-5)


def test_rotation_of_bf16_is_computed_in_fp32():
    x_BTHK = torch.randn(2, 32, 3, 8).bfloat16()
    tables = rotary_tables(32, 8, theta=10_000.0, device=CPU)
    assert tables[0].dtype == tables[1].dtype == torch.float32
    assert torch.equal(rotate(x_BTHK, tables), rotate(x_BTHK.float(), tables).bfloat16())


def test_tables_made_in_inference_mode_can_be_trained_with():
    rotary_tables.cache_clear()
    with torch.inference_mode():
        rotary_tables(4, 8, theta=10_000.0, device=CPU)
    x_BTHK = torch.randn(1, 4, 1, 8, requires_grad=True)
    rotate(x_BTHK, rotary_tables(4, 8, theta=10_000.0, device=CPU)).sum().backward()
    assert x_BTHK.grad is not None


def test_grouped_heads_equal_full_attention_with_repeated_keys_and_values():
    grouped = Attention(CONFIG)
    full = Attention(ModelConfig(**{**CONFIG.to_dict(), "kv_heads": CONFIG.heads}))
    state = grouped.state_dict()
    for name in ("k.weight", "v.weight"):
        state[name] = state[name].unflatten(0, (2, 8)).repeat_interleave(3, 0).flatten(0, 1)
    full.load_state_dict(state)
    x_BTD = torch.randn(2, 32, 48)
    tables = rotary_tables(32, 8, theta=10_000.0, device=CPU)
    assert_close(grouped(x_BTD, tables), full(x_BTD, tables), atol=1e-6, rtol=1e-5)


def test_dropout_of_attention_acts_in_training_only():
    attention = Attention(ModelConfig(**{**CONFIG.to_dict(), "dropout": 0.5}))
    x_BTD = torch.randn(1, 32, 48)
    tables = rotary_tables(32, 8, theta=10_000.0, device=CPU)
    assert not torch.equal(attention(x_BTD, tables), attention(x_BTD, tables))
    attention.eval()
    assert torch.equal(attention(x_BTD, tables), attention(x_BTD, tables))
