"""The decoder: weights from a seed, causality, dropout, precision, losses.

Shapes: B rows, T tokens, D width, V vocabulary.
"""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from model.attention import rotary_tables
from model.config import ModelConfig
from model.gpt import GPT, IGNORED_TARGET, Block, token_losses

CONFIG = ModelConfig(vocab_size=67, layers=3, width=48, heads=6, kv_heads=2, hidden=80, context=32)


@pytest.fixture
def ids_BT():
    return torch.randint(67, (2, 32), generator=torch.Generator().manual_seed(0))


def test_a_seed_gives_the_same_weights_whatever_was_drawn_before():
    first = GPT(CONFIG).initialise(3).state_dict()
    torch.rand(5)
    again, other = GPT(CONFIG).initialise(3).state_dict(), GPT(CONFIG).initialise(4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embed.weight"], other["embed.weight"])


def test_a_seed_gives_bf16_weights_that_are_the_rounded_fp32_ones():
    wide, narrow = GPT(CONFIG).initialise(3), GPT(CONFIG).bfloat16().initialise(3)
    assert all(torch.equal(a.bfloat16(), b) for a, b in zip(wide.parameters(), narrow.parameters(), strict=True))


def test_initial_weights_have_the_documented_deviations():
    config = ModelConfig(
        vocab_size=512, layers=8, width=128, heads=4, kv_heads=4, hidden=256, context=8, tie_embeddings=False
    )
    for name, parameter in GPT(config).initialise(0).state_dict().items():
        if "norm" in name:
            assert bool((parameter == 1).all()), name
            continue
        scale = 1 / math.sqrt(16) if ".out." in name or ".down." in name else 1.0
        assert float(parameter.std()) == pytest.approx(0.02 * scale, rel=0.03), name
        assert abs(float(parameter.mean())) < 0.0005, name


def test_an_untrained_model_is_undecided(ids_BT):
    losses_BT = token_losses(GPT(CONFIG).initialise(0), ids_BT, ids_BT.roll(-1, 1))
    assert losses_BT.mean().item() == pytest.approx(math.log(67), rel=0.02)


@pytest.mark.parametrize("changed", [0, 1, 17, 31])
def test_a_token_changes_no_logits_before_it(ids_BT, changed):
    model = GPT(CONFIG).initialise(0).eval()
    other_BT = ids_BT.clone()
    other_BT[:, changed] = (other_BT[:, changed] + 1) % 67
    logits_BTV, changed_BTV = model(ids_BT), model(other_BT)
    assert torch.equal(logits_BTV[:, :changed], changed_BTV[:, :changed])
    assert not torch.equal(logits_BTV[:, changed], changed_BTV[:, changed])


@pytest.mark.parametrize("part", ["dropout", "blocks.1.dropout", "blocks.1.attention"])
def test_each_dropout_acts_in_training_only(ids_BT, part):
    model = GPT(replace(CONFIG, dropout=0.5)).initialise(0).eval()
    quiet_BTV = model(ids_BT)
    assert torch.equal(quiet_BTV, model(ids_BT))
    model.get_submodule(part).train()
    assert not torch.equal(quiet_BTV, model(ids_BT))


def test_residual_dropout_covers_both_branches_of_a_block():
    block = Block(replace(CONFIG, dropout=0.5))
    block.dropout.p = 1.0
    x_BTD = torch.randn(2, 32, 48)
    rotary = rotary_tables(32, 8, theta=10_000.0, device=torch.device("cpu"))
    assert torch.equal(block(x_BTD, rotary), x_BTD)


def test_a_tied_table_is_one_parameter_with_the_gradient_of_both_uses(ids_BT):
    tied = GPT(CONFIG).initialise(0)
    untied = GPT(replace(CONFIG, tie_embeddings=False))
    untied.load_state_dict(tied.state_dict() | {"head.weight": tied.embed.weight})
    assert "head.weight" not in tied.state_dict()
    for model in (tied, untied):
        token_losses(model, ids_BT, ids_BT.roll(-1, 1)).mean().backward()
    both = untied.embed.weight.grad + untied.head.weight.grad
    assert_close(tied.embed.weight.grad, both, atol=1e-6, rtol=1e-5)


def test_casting_to_bf16_leaves_positions_and_norms_in_fp32(ids_BT):
    model = GPT(CONFIG).initialise(0).eval()
    assert list(model.buffers()) == []
    model.bfloat16()
    rounded_BTV = model(ids_BT)
    assert rounded_BTV.dtype == torch.bfloat16
    assert_close(rounded_BTV.float(), model.float()(ids_BT), atol=0.02, rtol=0)
    x_BTD = torch.randn(2, 3, 48).bfloat16()
    assert torch.equal(model.bfloat16().norm(x_BTD), model.float().norm(x_BTD.float()).bfloat16())


def test_a_model_made_on_the_meta_device_runs_once_it_has_weights(ids_BT):
    model = GPT(CONFIG).initialise(0)
    with torch.device("meta"):
        empty = GPT(CONFIG)
    empty.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(empty(ids_BT), model(ids_BT))


def test_more_tokens_than_the_context_are_refused():
    with pytest.raises(ValueError, match="33 tokens exceed the context of 32"):
        GPT(CONFIG)(torch.zeros(1, 33, dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows_in_a_block", [1, 7, 64, 1000])
def test_losses_are_fp32_cross_entropies_however_they_are_blocked(monkeypatch, ids_BT, dtype, rows_in_a_block):
    monkeypatch.setattr("model.gpt._LOSS_BLOCK", rows_in_a_block * 67)
    logits_BTV = torch.randn(2, 32, 67).to(dtype).requires_grad_()
    targets_BT = ids_BT.clone()
    targets_BT[0, :5] = IGNORED_TARGET
    losses_BT = token_losses(lambda _: logits_BTV, ids_BT, targets_BT)
    expected_BT = F.cross_entropy(logits_BTV.float().transpose(1, 2), targets_BT, reduction="none")
    assert losses_BT.dtype == torch.float32
    assert_close(losses_BT, expected_BT)
    assert bool((losses_BT[0, :5] == 0).all())
    gradients = [torch.autograd.grad(losses.sum(), logits_BTV)[0] for losses in (losses_BT, expected_BT)]
    assert_close(*gradients)
