"""Every family is built from its entry, and learns as the transformers model of the same weights does.

Shapes: B rows, T tokens.
"""

from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertForPreTraining, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from model.config import LABELLED, FamilyName, HeadConfig, HeadKind, ModelConfig
from model.families import FAMILIES, build
from model.gpt import GPT
from model.huggingface import to_hf_config, to_hf_state
from model.loss import IGNORED_TARGET, projected_cross_entropy

SIZES = {"vocab_size": 67, "layers": 2, "width": 32, "heads": 4, "kv_heads": 4, "hidden": 48, "context": 16}
PRETRAINING = HeadConfig("pretraining")
STEPS = 20


def config_of(family):
    return ModelConfig(family=family, **SIZES)


@pytest.mark.parametrize("family", get_args(FamilyName))
@pytest.mark.parametrize("kind", get_args(HeadKind))
def test_a_family_builds_the_heads_it_carries_and_names_those_it_does_not(family, kind):
    head = HeadConfig(kind, ("a", "b") if kind in LABELLED else ())
    if kind in FAMILIES[family].heads:
        assert build(config_of(family), head).initialise(0).config.family == family
        return
    with pytest.raises(ValueError, match=f"{family} does not carry the head '{kind}'; it carries "):
        build(config_of(family), head)


def test_a_decoder_with_its_own_projection_is_the_plain_one():
    assert type(build(config_of("llama"))) is GPT
    assert type(build(config_of("gpt2"), HeadConfig("lm"))) is GPT


def batches(family):
    """Ids, targets, segments, mask, next-sentence labels of each step; the last row of encoders is padded."""
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        ids_BT = torch.randint(4, 67, (4, 16), generator=generator)
        mask_BT = torch.ones(4, 16, dtype=torch.bool)
        if family != "bert":
            yield ids_BT, ids_BT.roll(-1, 1), None, mask_BT, None
            continue
        mask_BT[3, 11:] = False
        chosen_BT = (torch.rand(4, 16, generator=generator) < 0.3) & mask_BT
        targets_BT = torch.where(chosen_BT, ids_BT, IGNORED_TARGET)
        segments_BT = (torch.arange(16) > 7).long().expand(4, 16)
        yield ids_BT * ~chosen_BT, targets_BT, segments_BT, mask_BT, torch.tensor([0, 1, 0, 1])


def our_loss(model, batch):
    ids_BT, targets_BT, segments_BT, mask_BT, follows_B = batch
    extra = 0.0
    if follows_B is None:
        x_BTD = model.hidden(ids_BT)
    else:
        hidden_BTD = model.backbone.hidden(ids_BT, segments_BT, mask_BT)
        extra = F.cross_entropy(model.next_sentence_logits(hidden_BTD), follows_B)
        x_BTD = model.transform(hidden_BTD)
    total = projected_cross_entropy(
        x_BTD.flatten(0, 1),
        model.projection_weight_VD,
        targets_BT.flatten(),
        bias_V=model.projection_bias_V,
        chunk_rows=24,
    )
    return total / (targets_BT != IGNORED_TARGET).sum() + extra


def their_loss(model, batch):
    ids_BT, targets_BT, segments_BT, mask_BT, follows_B = batch
    if follows_B is not None:
        return model(
            ids_BT,
            token_type_ids=segments_BT,
            attention_mask=mask_BT.long(),
            labels=targets_BT,
            next_sentence_label=follows_B,
        ).loss
    return F.cross_entropy(model(ids_BT).logits.flatten(0, 1), targets_BT.flatten())


def losses(model, loss_of, family):
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    found = []
    for batch in batches(family):
        loss = loss_of(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        found.append(float(loss.detach()))
    return found


@pytest.mark.parametrize(
    ("family", "their_config", "their_class", "head"),
    [
        ("llama", LlamaConfig, LlamaForCausalLM, HeadConfig("lm")),
        ("gpt2", GPT2Config, GPT2LMHeadModel, HeadConfig("lm")),
        ("bert", BertConfig, BertForPreTraining, PRETRAINING),
    ],
    ids=["llama", "gpt2", "bert"],
)
def test_steps_from_the_same_weights_give_the_losses_of_transformers(family, their_config, their_class, head):
    config = config_of(family)
    ours = build(config, head).initialise(0)
    settings = to_hf_config(config, head, bos_token_id=1, eos_token_id=2, dtype="float32")
    theirs = their_class(their_config(**settings))
    report = theirs.load_state_dict(to_hf_state(ours.state_dict(), config, head), strict=False)
    assert report.unexpected_keys == []
    theirs.tie_weights()
    expected = losses(theirs.train(), their_loss, family)
    found = losses(ours.train(), our_loss, family)
    assert found == pytest.approx(expected, abs=1e-4)
    assert abs(found[0] - found[-1]) > 0.005
