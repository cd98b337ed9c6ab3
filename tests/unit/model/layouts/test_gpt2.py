"""GPT-2's weights and settings cross to transformers and back. Shapes: B rows, T tokens, S positions, V vocabulary."""

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
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, GPT2Model

from model.config import ModelConfig
from model.gpt import GPT
from model.huggingface import from_hf_config, from_hf_state, to_hf_state
from model.positions import sinusoidal_table

BASE = ModelConfig(vocab_size=67, layers=2, width=48, heads=6, kv_heads=6, hidden=192, context=40, family="gpt2")
GRID = {
    "plain": BASE,
    "untied": replace(BASE, tie_embeddings=False),
    "odd sizes": replace(BASE, vocab_size=61, width=35, heads=5, kv_heads=5, hidden=37, context=33, layers=1),
    "other constants": replace(BASE, norm_eps=1e-2),
    "sinusoids": replace(BASE, positions="sinusoidal"),
}


@pytest.mark.parametrize("config", GRID.values(), ids=GRID.keys())
def test_their_model_has_the_same_logits_in_ours(config, tmp_path, random_weights):
    theirs = random_weights(GPT2LMHeadModel(GPT2Config(**decoder_settings(config))))
    if config.positions == "sinusoidal":
        table_SD = sinusoidal_table(config.context, config.width, device=torch.device("cpu"))
        theirs.transformer.wpe.weight.data.copy_(table_SD)
    assert_ours_take_the_weights_of(theirs, config, tmp_path)


@pytest.mark.parametrize("config", GRID.values(), ids=GRID.keys())
def test_our_export_has_the_same_logits_in_theirs(config, tmp_path, random_weights):
    ours = random_weights(GPT(config))
    tensors, about = to_hf_state(ours.state_dict(), config), decoder_settings(config)
    theirs = loaded_by_transformers(AutoModelForCausalLM, tensors, about, tmp_path)
    assert isinstance(theirs, GPT2LMHeadModel)
    assert_same_logits(ours, theirs)


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(list(GRID.values())), st.sampled_from([0.0, 0.1]), st.sampled_from([None, 0, 3]))
def test_settings_survive_the_round_trip_exactly(config, dropout, token):
    assert_settings_survive(replace(config, dropout=dropout), token=token)


@pytest.mark.parametrize("config", GRID.values(), ids=GRID.keys())
def test_weights_survive_the_round_trip_exactly(config):
    state = GPT(config).initialise(0).state_dict()
    exported = to_hf_state(state, config)
    assert ("lm_head.weight" in exported) is not config.tie_embeddings
    assert exported["transformer.wpe.weight"].shape == (config.context, config.width)
    back = from_hf_state(exported, config)
    assert set(back) == set(state)
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_files_without_the_prefix_and_with_masks_as_the_published_ones_have_load(random_weights):
    theirs = random_weights(GPT2LMHeadModel(GPT2Config(**decoder_settings(BASE))))
    bare = GPT2Model(theirs.config)
    bare.load_state_dict(theirs.transformer.state_dict())
    state = bare.state_dict() | {"h.0.attn.bias": torch.ones(1, 1, 40, 40), "h.1.attn.masked_bias": torch.zeros(())}
    ours = GPT(BASE)
    ours.load_state_dict(from_hf_state(state, BASE))
    assert_same_logits(ours, theirs)


def test_a_position_table_that_holds_no_sinusoids_is_refused():
    config = GRID["sinusoids"]
    exported = to_hf_state(GPT(config).initialise(0).state_dict(), config)
    rounded = exported | {"transformer.wpe.weight": exported["transformer.wpe.weight"].bfloat16()}
    assert "position.table.weight" not in from_hf_state(rounded, config)
    exported["transformer.wpe.weight"] = exported["transformer.wpe.weight"].roll(1, 0)
    with pytest.raises(ValueError, match=r"transformer\.wpe\.weight does not hold sinusoids"):
        from_hf_state(exported, config)


def test_what_a_config_leaves_out_has_the_default_of_transformers():
    sizes = {"vocab_size": 9, "n_embd": 8, "n_layer": 1, "n_head": 2}
    theirs = from_hf_config(GPT2Config(**sizes).to_dict())
    assert from_hf_config({"model_type": "gpt2", **sizes}) == theirs
    assert (theirs.context, theirs.hidden, theirs.dropout) == (1024, 32, 0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation_function": "relu"}, "activation_function 'relu' is not supported; only 'gelu_new' or"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True is not supported"),
        ({"scale_attn_weights": False}, "scale_attn_weights False is not supported"),
        ({"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn True is not supported"),
        ({"add_cross_attention": True}, "add_cross_attention True is not supported"),
        ({"attn_pdrop": 0.3}, "resid_pdrop 0.0, embd_pdrop 0.0, attn_pdrop 0.3 differ; only one dropout"),
    ],
)
def test_models_that_are_not_ours_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        from_hf_config(decoder_settings(BASE, **change))
