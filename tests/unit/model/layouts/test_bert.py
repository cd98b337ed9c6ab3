"""BERT and its heads cross to transformers and back unchanged. Shapes: B rows, T tokens, V vocabulary."""

import json
from dataclasses import replace

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_fixtures import loaded_by_transformers
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import BertConfig

from model.config import LABELLED, HeadConfig, ModelConfig
from model.families import FAMILIES, build
from model.huggingface import from_hf_config, from_hf_state, head_from_hf_config, to_hf_config, to_hf_state
from model.layouts.bert import LAYOUT

BASE = ModelConfig(vocab_size=67, layers=2, width=48, heads=6, kv_heads=6, hidden=80, context=40, family="bert")
GRID = {
    "plain": BASE,
    "odd sizes": replace(BASE, vocab_size=61, width=35, heads=5, kv_heads=5, hidden=37, context=33, layers=1),
    "three segments, other eps": replace(BASE, segments=3, norm_eps=1e-2),
    "sinusoids": replace(BASE, positions="sinusoidal"),
}
HEADS = {kind: HeadConfig(kind, ("O", "B-X", "I-X") if kind in LABELLED else ()) for kind in FAMILIES["bert"].heads}
every_head = pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
every_size = pytest.mark.parametrize("config", GRID.values(), ids=GRID.keys())


def hf_config(config, head=HEADS["mlm"], **changes):
    data = to_hf_config(config, head, bos_token_id=None, eos_token_id=None, pad_token_id=0, dtype="float32")
    return data | changes


def their_kind(head):
    return getattr(transformers, LAYOUT.architectures[head.kind])


def without_pooler(head):
    return {"add_pooling_layer": False} if head.kind == "embedding" else {}


def their_model(head, config):
    return their_kind(head)(BertConfig(**hf_config(config, head)), **without_pooler(head))


def batch(config):
    """Ids, segments and a mask with padding of two lengths."""
    generator = torch.Generator().manual_seed(1)
    ids_BT = torch.randint(config.vocab_size, (3, config.context), generator=generator)
    segments_BT = torch.randint(config.segments, ids_BT.shape, generator=generator)
    lengths_B1 = torch.tensor([[config.context], [7], [config.context - 5]])
    return ids_BT, segments_BT, torch.arange(config.context) < lengths_B1


def assert_same_outputs(ours, theirs):
    ids_BT, segments_BT, mask_BT = batch(ours.config)
    with torch.inference_mode():
        found = ours.eval()(ids_BT, segments_BT, mask_BT)
        wanted = theirs.eval()(ids_BT, token_type_ids=segments_BT, attention_mask=mask_BT.long())
    for name, output in found.items():
        expected = their_output(ours.head.kind, name, wanted, mask_BT)
        by_token = output.shape[:2] == mask_BT.shape
        kept = mask_BT if by_token else slice(None)
        assert_close(output[kept], expected[kept], atol=1e-4, rtol=0)
        assert float(output.std()) > 0.05


def their_output(kind, name, wanted, mask_BT):
    if kind == "embedding":
        weights_BT1 = mask_BT[..., None].float()
        return (wanted.last_hidden_state * weights_BT1).sum(1) / weights_BT1.sum(1)
    if kind == "question-answering":
        return torch.stack((wanted.start_logits, wanted.end_logits), -1)
    if kind == "pretraining":
        return wanted.prediction_logits if name == "logits" else wanted.seq_relationship_logits
    return wanted.logits


@every_head
@pytest.mark.parametrize("config", [BASE, GRID["odd sizes"], GRID["three segments, other eps"]], ids=list(GRID)[:3])
def test_their_model_has_the_same_outputs_in_ours(head, config, tmp_path, random_weights):
    theirs = random_weights(their_model(head, config))
    theirs.save_pretrained(tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    assert from_hf_config(data) == config
    assert head_from_hf_config(data) == head
    for state in (load_file(tmp_path / "model.safetensors"), theirs.state_dict()):
        ours = build(config, head)
        ours.load_state_dict(from_hf_state(state, config, head))
        assert_same_outputs(ours, theirs)


@every_head
@every_size
def test_our_export_has_the_same_outputs_in_theirs(head, config, tmp_path, random_weights):
    ours = random_weights(build(config, head))
    tensors, about = to_hf_state(ours.state_dict(), config, head), hf_config(config, head)
    theirs = loaded_by_transformers(their_kind(head), tensors, about, tmp_path, **without_pooler(head))
    assert_same_outputs(ours, theirs)


@every_head
@every_size
def test_weights_survive_the_round_trip_exactly(head, config):
    state = build(config, head).initialise(0).state_dict()
    back = from_hf_state(to_hf_state(state, config, head), config, head)
    assert set(back) == set(state)
    assert all(back[name] is state[name] for name in state)


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(list(GRID.values())), st.sampled_from(list(HEADS.values())), st.sampled_from([0.0, 0.1]))
def test_settings_survive_the_round_trip_exactly(config, head, dropout):
    config = replace(config, dropout=dropout)
    data = json.loads(json.dumps(hf_config(config, head)))
    assert from_hf_config(data) == config
    assert head_from_hf_config(data) == head


def test_published_files_hold_more_than_a_head_reads_under_older_names(random_weights):
    theirs = random_weights(their_model(HEADS["pretraining"], BASE))
    state = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in theirs.state_dict().items()
    }
    state["bert.embeddings.position_ids"] = torch.arange(40)[None]
    for kind in ("pretraining", "mlm"):
        ours = build(BASE, HEADS[kind])
        ours.load_state_dict(from_hf_state(state, BASE, HEADS[kind]))
        ids_BT, segments_BT, mask_BT = batch(BASE)
        wanted = theirs(ids_BT, token_type_ids=segments_BT, attention_mask=mask_BT.long()).prediction_logits
        assert_close(ours.eval()(ids_BT, segments_BT, mask_BT)["logits"][mask_BT], wanted[mask_BT], atol=1e-4, rtol=0)


def test_a_bare_encoder_loads_with_or_without_its_prefix_and_pooler():
    head = HEADS["embedding"]
    state = build(BASE, head).initialise(0).state_dict()
    bare = to_hf_state(state, BASE, head)
    pooler = {"pooler.dense.weight": torch.zeros(48, 48), "pooler.dense.bias": torch.zeros(48)}
    assert "embeddings.word_embeddings.weight" in bare
    for tensors in (bare, bare | pooler, {f"bert.{name}": tensor for name, tensor in bare.items()}):
        assert set(from_hf_state(tensors, BASE, head)) == set(state)


def test_a_second_copy_that_differs_is_refused():
    head = HEADS["mlm"]
    exported = to_hf_state(build(BASE, head).initialise(0).state_dict(), BASE, head)
    exported["cls.predictions.decoder.weight"] = exported["bert.embeddings.word_embeddings.weight"] + 1
    with pytest.raises(ValueError, match=r"cls\.predictions\.decoder\.weight differs from bert\.embeddings\.word"):
        from_hf_state(exported, BASE, head)


def test_what_a_config_leaves_out_has_the_default_of_transformers():
    sizes = {
        "vocab_size": 9,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 7,
    }
    theirs = from_hf_config(BertConfig(**sizes).to_dict())
    assert from_hf_config({"model_type": "bert", **sizes}) == theirs
    assert (theirs.context, theirs.norm_eps, theirs.dropout, theirs.segments) == (512, 1e-12, 0.1, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act 'relu' is not supported; only 'gelu' is"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key' is not supported"),
        ({"is_decoder": True}, "is_decoder True is not supported"),
        ({"add_cross_attention": True}, "add_cross_attention True is not supported"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings False is not supported"),
        ({"problem_type": "regression"}, "problem_type 'regression' is not supported"),
        ({"classifier_dropout": 0.3}, "classifier_dropout 0.3 differ; only one dropout"),
    ],
)
def test_models_that_are_not_ours_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        from_hf_config(hf_config(BASE, **change))
