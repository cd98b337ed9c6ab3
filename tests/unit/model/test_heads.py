"""Heads on an encoder; that they equal those of transformers, `layouts/test_bert.py` shows.

Shapes: B rows, T tokens, D width, V vocabulary.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from model.config import LABELLED, HeadConfig, ModelConfig
from model.families import FAMILIES, build
from model.loss import IGNORED_TARGET, projected_cross_entropy

CONFIG = ModelConfig(vocab_size=67, layers=2, width=48, heads=6, kv_heads=6, hidden=80, context=32, family="bert")
HEADS = [HeadConfig(kind, ("a", "b", "c") if kind in LABELLED else ()) for kind in FAMILIES["bert"].heads]
SHAPES = {
    "mlm": {"logits": (2, 32, 67)},
    "pretraining": {"logits": (2, 32, 67), "next_sentence_logits": (2, 2)},
    "classification": {"logits": (2, 3)},
    "token-classification": {"logits": (2, 32, 3)},
    "question-answering": {"logits": (2, 32, 2)},
    "embedding": {"embeddings": (2, 48)},
}


@pytest.fixture
def ids_BT():
    return torch.randint(67, (2, 32), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.kind)
def test_outputs_have_their_names_and_shapes_and_every_weight_learns(head, ids_BT):
    model = build(CONFIG, head).initialise(0)
    outputs = model(ids_BT, torch.zeros_like(ids_BT), torch.ones_like(ids_BT, dtype=torch.bool))
    assert {name: tuple(output.shape) for name, output in outputs.items()} == SHAPES[head.kind]
    sum((output**2).sum() for output in outputs.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.kind)
def test_a_seed_decides_all_weights(head):
    first, again, other = (build(CONFIG, head).initialise(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name in first if first[name].dim() == 2]
    assert not any(torch.equal(first[name], other[name]) for name in drawn)
    assert all(bool((first[name] == 0).all()) for name in first if name.endswith("bias"))


@pytest.mark.parametrize("kind", ["mlm", "pretraining"])
def test_the_loss_at_masked_positions_needs_no_other_logits(kind, ids_BT):
    model = build(CONFIG, HeadConfig(kind)).initialise(0)
    targets_BT = torch.where(torch.rand(2, 32) < 0.15, ids_BT, IGNORED_TARGET)
    whole = F.cross_entropy(model(ids_BT)["logits"].flatten(0, 1), targets_BT.flatten(), reduction="sum")
    x_BTD = model.backbone.hidden(ids_BT)
    masked_BT = targets_BT != IGNORED_TARGET
    found = projected_cross_entropy(
        model.transform(x_BTD[masked_BT]),
        model.projection_weight_VD,
        targets_BT[masked_BT],
        bias_V=model.projection_bias_V,
    )
    assert_close(found, whole, atol=1e-4, rtol=1e-5)
    ours, theirs = (torch.autograd.grad(loss, model.backbone.embed.weight)[0] for loss in (found, whole))
    assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_next_sentence_logits_are_of_pretraining_alone(ids_BT):
    model = build(CONFIG, HeadConfig("pretraining")).initialise(0).eval()
    x_BTD = model.backbone.hidden(ids_BT)
    assert torch.equal(model.next_sentence_logits(x_BTD), model(ids_BT)["next_sentence_logits"])
    with pytest.raises(ValueError, match="'mlm' has no next-sentence logits"):
        build(CONFIG, HeadConfig("mlm")).next_sentence_logits(x_BTD)


def test_an_embedding_is_the_mean_over_tokens_and_not_over_padding(ids_BT):
    model = build(CONFIG, HeadConfig("embedding")).initialise(0).eval()
    mask_BT = torch.ones(2, 32, dtype=torch.bool)
    mask_BT[0, 12:] = False
    found_BD = model(ids_BT, mask_BT=mask_BT)["embeddings"]
    assert_close(found_BD[0], model.backbone.hidden(ids_BT[:1, :12])[0].mean(0), atol=1e-5, rtol=0)
    assert_close(found_BD[1], model(ids_BT)["embeddings"][1], atol=1e-5, rtol=0)
    mask_BT[1] = False
    assert bool((model(ids_BT, mask_BT=mask_BT)["embeddings"][1] == 0).all())


@pytest.mark.parametrize("kind", ["classification", "token-classification"])
def test_dropout_before_the_classes_acts_in_training_only(kind, ids_BT):
    model = build(replace(CONFIG, dropout=0.5), HeadConfig(kind, ("a", "b"))).initialise(0).eval()
    quiet = model(ids_BT)["logits"]
    assert torch.equal(quiet, model(ids_BT)["logits"])
    model.dropout.train()
    assert not torch.equal(quiet, model(ids_BT)["logits"])
