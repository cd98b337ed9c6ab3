"""Rotary positions, grouped heads. Shapes: B rows, T tokens, S positions, H heads, K head width."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from model.attention import Attention, _rotary_tables, document_mask, rotary_tables, rotate
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
    _rotary_tables.cache_clear()
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


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=3))
def test_documents_see_themselves_backwards_and_padding_itself_alone(rows):
    mask_B1TT = document_mask(torch.tensor(rows))
    assert mask_B1TT.shape == (len(rows), 1, 6, 6)
    for row, mask_TT in zip(rows, mask_B1TT[:, 0].tolist(), strict=True):
        for query in range(6):
            for key in range(6):
                same = row[query] == row[key] != 0 and key <= query
                assert mask_TT[query][key] == (same or query == key)


def test_a_mask_of_one_document_is_causal_attention():
    attention = Attention(CONFIG)
    x_BTD = torch.randn(2, 32, 48)
    tables = rotary_tables(32, 8, theta=10_000.0, device=CPU)
    mask_B1TT = document_mask(torch.ones(2, 32, dtype=torch.int64))
    assert_close(attention(x_BTD, tables, None, mask_B1TT), attention(x_BTD, tables), atol=1e-6, rtol=1e-5)


def test_an_encoders_attention_looks_both_ways():
    sizes = {**CONFIG.to_dict(), "family": "bert", "positions": "learned", "kv_heads": 6}
    attention = Attention(ModelConfig(**sizes))
    x_BTD = torch.randn(1, 8, 48)
    changed_BTD = x_BTD.clone()
    changed_BTD[:, 7] += 1
    assert not torch.equal(attention(x_BTD)[:, 0], attention(changed_BTD)[:, 0])
