"""The encoder: weights from a seed, padding, segments, precision. Shapes: B rows, T tokens, D width."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from model.bert import Bert, EncoderBlock
from model.config import ModelConfig

CONFIG = ModelConfig(vocab_size=67, layers=2, width=48, heads=6, kv_heads=6, hidden=80, context=32, family="bert")


@pytest.fixture
def ids_BT():
    return torch.randint(67, (2, 32), generator=torch.Generator().manual_seed(0))


def test_initial_weights_are_truncated_normals_as_in_the_papers_code():
    big = replace(CONFIG, vocab_size=512, width=126, hidden=256, context=256)
    for name, parameter in Bert(big).initialise(0).state_dict().items():
        if parameter.dim() == 1:
            assert bool((parameter == (0 if name.endswith("bias") else 1)).all()), name
            continue
        assert float(parameter.abs().max()) <= 0.04, name
        tolerance = 0.2 if name.startswith("segment") else 0.03
        assert float(parameter.std()) == pytest.approx(0.0176, rel=tolerance), name


def test_a_seed_gives_the_same_weights_in_every_precision():
    wide, narrow = Bert(CONFIG).initialise(3), Bert(CONFIG).bfloat16().initialise(3)
    assert all(torch.equal(a.bfloat16(), b) for a, b in zip(wide.parameters(), narrow.parameters(), strict=True))
    assert not torch.equal(wide.embed.weight, Bert(CONFIG).initialise(4).embed.weight)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_padding_changes_nothing_for_the_tokens_beside_it(positions, ids_BT, random_weights):
    model = random_weights(Bert(replace(CONFIG, positions=positions)))
    mask_BT = torch.ones(2, 32, dtype=torch.bool)
    mask_BT[0, 20:] = False
    x_BTD = model.hidden(ids_BT, mask_BT=mask_BT)
    other_BT = ids_BT.clone()
    other_BT[0, 20:] = 5
    assert_close(model.hidden(other_BT, mask_BT=mask_BT)[mask_BT], x_BTD[mask_BT], atol=1e-5, rtol=0)
    assert_close(model.hidden(ids_BT[:1, :20])[0], x_BTD[0, :20], atol=1e-4, rtol=0)


def test_a_row_of_padding_alone_stays_finite(ids_BT):
    model = Bert(CONFIG).initialise(0)
    mask_BT = torch.ones(2, 32, dtype=torch.bool)
    mask_BT[1] = False
    x_BTD = model.hidden(ids_BT, mask_BT=mask_BT)
    x_BTD[0].sum().backward()
    assert bool(x_BTD.isfinite().all())
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_segments_are_the_first_unless_given(ids_BT, random_weights):
    model = random_weights(Bert(CONFIG))
    zeros_BT = torch.zeros_like(ids_BT)
    assert torch.equal(model.hidden(ids_BT), model.hidden(ids_BT, zeros_BT))
    assert not torch.equal(model.hidden(ids_BT), model.hidden(ids_BT, zeros_BT + 1))


@pytest.mark.parametrize("part", ["dropout", "blocks.1.dropout", "blocks.1.attention"])
def test_each_dropout_acts_in_training_only(ids_BT, part):
    model = Bert(replace(CONFIG, dropout=0.5)).initialise(0).eval()
    quiet_BTD = model.hidden(ids_BT)
    assert torch.equal(quiet_BTD, model.hidden(ids_BT))
    model.get_submodule(part).train()
    assert not torch.equal(quiet_BTD, model.hidden(ids_BT))


def test_residual_dropout_covers_both_branches_of_a_block():
    block = EncoderBlock(replace(CONFIG, dropout=0.5))
    block.dropout.p = 1.0
    x_BTD = torch.randn(2, 32, 48)
    assert_close(block(x_BTD), block.mlp_norm(block.attention_norm(x_BTD)))


def test_the_pooler_reads_the_first_token(ids_BT):
    model = Bert(CONFIG).initialise(0)
    x_BTD = model.hidden(ids_BT)
    assert_close(model.pooled(x_BTD), torch.tanh(model.pooler(x_BTD[:, 0])))
    with pytest.raises(ValueError, match="built with pooler=False"):
        Bert(CONFIG, pooler=False).pooled(x_BTD)


def test_casting_to_bf16_and_the_meta_device(ids_BT):
    model = Bert(CONFIG).initialise(0).eval()
    assert list(model.buffers()) == []
    exact_BTD = model.hidden(ids_BT)
    with torch.device("meta"):
        empty = Bert(CONFIG)
    empty.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(empty.eval().hidden(ids_BT), exact_BTD)
    rounded_BTD = model.bfloat16().hidden(ids_BT)
    assert rounded_BTD.dtype == torch.bfloat16
    assert_close(rounded_BTD.float(), exact_BTD, atol=0.1, rtol=0)


def test_more_tokens_than_the_context_are_refused():
    with pytest.raises(ValueError, match="33 tokens exceed the context of 32"):
        Bert(CONFIG).hidden(torch.zeros(1, 33, dtype=torch.int64))
