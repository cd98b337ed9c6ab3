"""Llama's weights and settings cross to transformers and back unchanged. Shapes: B rows, T tokens, V vocabulary."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_fixtures import (
    assert_ours_take_the_weights_of,
    assert_same_logits,
    assert_settings_survive,
    decoder_settings,
    loaded_by_transformers,
)
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from model.config import ModelConfig
from model.gpt import GPT
from model.huggingface import from_hf_config, from_hf_state, to_hf_state

BASE = ModelConfig(vocab_size=67, layers=2, width=48, heads=6, kv_heads=6, hidden=80, context=40)
GRID = {
    "plain": BASE,
    "untied": replace(BASE, tie_embeddings=False),
    "grouped": replace(BASE, kv_heads=2, tie_embeddings=False),
    "one key head": replace(BASE, kv_heads=1),
    "odd sizes": replace(BASE, vocab_size=61, width=30, heads=5, kv_heads=1, hidden=37, context=33, layers=1),
    "other constants": replace(BASE, rope_theta=500_000.0, norm_eps=1e-3),
}


@pytest.mark.parametrize("config", GRID.values(), ids=GRID.keys())
def test_their_model_has_the_same_logits_in_ours(config, tmp_path, random_weights):
    theirs = random_weights(LlamaForCausalLM(LlamaConfig(**decoder_settings(config))))
    assert_ours_take_the_weights_of(theirs, config, tmp_path)


@pytest.mark.parametrize("config", GRID.values(), ids=GRID.keys())
def test_our_export_has_the_same_logits_in_theirs(config, tmp_path, random_weights):
    ours = random_weights(GPT(config))
    tensors, about = to_hf_state(ours.state_dict(), config), decoder_settings(config)
    theirs = loaded_by_transformers(AutoModelForCausalLM, tensors, about, tmp_path)
    assert isinstance(theirs, LlamaForCausalLM)
    assert theirs.dtype == torch.float32
    assert_same_logits(ours, theirs)


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(list(GRID.values())), st.sampled_from([0.0, 0.1]), st.sampled_from([None, 0, 3]))
def test_settings_survive_the_round_trip_exactly(config, dropout, token):
    assert_settings_survive(replace(config, dropout=dropout), token=token)


@pytest.mark.parametrize("tie", [True, False])
def test_weights_survive_the_round_trip_exactly(tie):
    config = replace(BASE, tie_embeddings=tie, layers=11)
    state = GPT(config).state_dict()
    exported = to_hf_state(state, config)
    assert ("lm_head.weight" in exported) is not tie
    back = from_hf_state(exported, config)
    assert list(back) == list(state)
    assert all(back[name] is state[name] for name in state)


def test_positions_are_described_for_both_generations_of_readers():
    data = decoder_settings(replace(BASE, rope_theta=5e5))
    assert data["rope_theta"] == data["rope_parameters"]["rope_theta"] == 5e5
    without = {key: value for key, value in data.items() if key != "rope_parameters"}
    assert from_hf_config(without).rope_theta == 5e5


def test_what_a_config_leaves_out_has_the_default_of_transformers():
    sizes = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 7, "num_hidden_layers": 1}
    sizes["num_attention_heads"] = 2
    theirs = from_hf_config(LlamaConfig(**sizes).to_dict())
    assert from_hf_config({"model_type": "llama", **sizes}) == theirs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported; only 'silu' is"),
        ({"attention_bias": True}, "attention_bias True is not supported"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling .* is not supported"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_type 'llama3' is not supported"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        ({"head_dim": 16}, "head_dim 16 is not supported"),
    ],
)
def test_models_that_are_not_ours_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        from_hf_config(decoder_settings(BASE, **change))


def test_frequencies_in_old_files_and_second_copies_of_a_tied_table_are_passed_over():
    state = GPT(BASE).initialise(0).state_dict()
    exported = to_hf_state(state, BASE)
    exported["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(1)
    exported["lm_head.weight"] = exported["model.embed_tokens.weight"].clone()
    assert list(from_hf_state(exported, BASE)) == list(state)
    with pytest.raises(ValueError, match=r"not expected: lm_head\.bias"):
        from_hf_state(exported | {"lm_head.bias": torch.zeros(67)}, BASE)
