"""The decoder: weights from a seed, causality, dropout, precision, packing.

Shapes: B rows, T tokens, D width, V vocabulary.
"""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from model.attention import document_mask, rotary_tables
from model.config import ModelConfig
from model.gpt import GPT, Block
from model.loss import projected_cross_entropy

CONFIG = ModelConfig(vocab_size=67, layers=3, width=48, heads=6, kv_heads=2, hidden=80, context=32)
GPT2 = ModelConfig(vocab_size=67, layers=3, width=48, heads=6, kv_heads=6, hidden=80, context=32, family="gpt2")
FORMS = {"llama": CONFIG, "gpt2": GPT2, "sinusoids": replace(GPT2, positions="sinusoidal")}


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


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_initial_weights_have_the_documented_deviations(family):
    sizes = {"vocab_size": 512, "layers": 8, "width": 128, "heads": 4, "kv_heads": 4, "hidden": 256, "context": 256}
    config = ModelConfig(family=family, tie_embeddings=False, **sizes)
    for name, parameter in GPT(config).initialise(0).state_dict().items():
        if parameter.dim() == 1:
            assert bool((parameter == (0 if name.endswith("bias") else 1)).all()), name
            continue
        scale = 1 / math.sqrt(16) if ".out." in name or ".down." in name else 1.0
        scale *= 0.5 if name.startswith("position") else 1.0
        assert float(parameter.std()) == pytest.approx(0.02 * scale, rel=0.03), name
        assert abs(float(parameter.mean())) < 0.0005, name


@pytest.mark.parametrize("config", FORMS.values(), ids=FORMS.keys())
def test_an_untrained_model_is_undecided(config, ids_BT):
    logits_BTV = GPT(config).initialise(0)(ids_BT)
    loss = F.cross_entropy(logits_BTV.flatten(0, 1), ids_BT.roll(-1, 1).flatten())
    assert loss.item() == pytest.approx(math.log(67), rel=0.02)


@pytest.mark.parametrize("config", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("changed", [0, 1, 17, 31])
def test_a_token_changes_no_logits_before_it(config, ids_BT, changed):
    model = GPT(config).initialise(0).eval()
    other_BT = ids_BT.clone()
    other_BT[:, changed] = (other_BT[:, changed] + 1) % 67
    logits_BTV, changed_BTV = model(ids_BT), model(other_BT)
    assert torch.equal(logits_BTV[:, :changed], changed_BTV[:, :changed])
    assert not torch.equal(logits_BTV[:, changed], changed_BTV[:, changed])


@pytest.mark.parametrize("config", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("part", ["dropout", "blocks.1.dropout", "blocks.1.attention"])
def test_each_dropout_acts_in_training_only(config, ids_BT, part):
    model = GPT(replace(config, dropout=0.5)).initialise(0).eval()
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
        F.cross_entropy(model(ids_BT).flatten(0, 1), ids_BT.roll(-1, 1).flatten()).backward()
    both = untied.embed.weight.grad + untied.head.weight.grad
    assert_close(tied.embed.weight.grad, both, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("config", FORMS.values(), ids=FORMS.keys())
def test_casting_to_bf16_leaves_positions_and_norms_in_fp32(config, ids_BT):
    model = GPT(config).initialise(0).eval()
    assert list(model.buffers()) == []
    model.bfloat16()
    rounded_BTV = model(ids_BT)
    assert rounded_BTV.dtype == torch.bfloat16
    assert_close(rounded_BTV.float(), model.float()(ids_BT), atol=0.02, rtol=0)
    x_BTD = torch.randn(2, 3, 48).bfloat16()
    assert torch.equal(model.bfloat16().norm(x_BTD), model.float().norm(x_BTD.float()).bfloat16())


@pytest.mark.parametrize("config", FORMS.values(), ids=FORMS.keys())
def test_a_model_made_on_the_meta_device_runs_once_it_has_weights(config, ids_BT):
    model = GPT(config).initialise(0)
    with torch.device("meta"):
        empty = GPT(config)
    empty.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(empty(ids_BT), model(ids_BT))


@pytest.mark.parametrize("config", FORMS.values(), ids=FORMS.keys())
def test_more_tokens_than_the_context_are_refused(config):
    with pytest.raises(ValueError, match="33 tokens exceed the context of 32"):
        GPT(config)(torch.zeros(1, 33, dtype=torch.int64))


def packed(documents, context):
    """Documents in one row, padded: ids [1, T], segments [1, T], positions [1, T]."""
    lengths = [len(document) for document in documents]
    segments = torch.cat([torch.full((length,), number + 1) for number, length in enumerate(lengths)])
    positions = torch.cat([torch.arange(length) for length in lengths])
    columns = (torch.cat(documents), segments, positions)
    return [F.pad(column, (0, context - sum(lengths)))[None] for column in columns]


@pytest.mark.parametrize("config", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("lengths", [(32,), (5, 1, 9), (10, 22)])
def test_packed_documents_have_the_logits_that_each_has_alone(config, lengths):
    model = GPT(config).initialise(0).eval()
    documents = [torch.randint(67, (length,)) for length in lengths]
    ids_1T, segments_1T, positions_1T = packed(documents, 32)
    packed_TV = model(ids_1T, positions_BT=positions_1T, mask_B1TT=document_mask(segments_1T))[0]
    alone_TV = torch.cat([model(document[None])[0] for document in documents])
    assert_close(packed_TV[: len(alone_TV)], alone_TV, atol=1e-5, rtol=0)
    assert bool(packed_TV.isfinite().all())


@pytest.mark.parametrize("config", FORMS.values(), ids=FORMS.keys())
def test_positions_by_token_count(config, ids_BT):
    model = GPT(config).initialise(0).eval()
    positions_BT = torch.arange(32).expand(2, 32)
    assert_close(model(ids_BT, positions_BT=positions_BT), model(ids_BT), atol=1e-6, rtol=0)
    # Rotary angles are relative: a shift would change nothing, twice the distance does.
    short_BT = ids_BT[:, :16]
    assert not torch.allclose(model(short_BT, positions_BT=2 * positions_BT[:, :16]), model(short_BT), atol=1e-4)


@pytest.mark.parametrize("tie", [True, False])
def test_the_projection_is_what_logits_multiplies_by(tie):
    model = GPT(replace(CONFIG, tie_embeddings=tie)).initialise(0)
    x_ND = torch.randn(3, 48)
    assert model.projection_bias_V is None
    assert torch.equal(F.linear(x_ND, model.projection_weight_VD), model.logits(x_ND))


@pytest.mark.parametrize("config", [FORMS["llama"], FORMS["sinusoids"]], ids=["llama", "sinusoids"])
def test_network_and_loss_compile_into_one_graph(config, ids_BT):
    model = GPT(config).initialise(0)

    def loss(ids_BT):
        x_ND = model.hidden(ids_BT).flatten(0, 1)
        return projected_cross_entropy(x_ND, model.projection_weight_VD, ids_BT.roll(-1, 1).flatten(), chunk_rows=24)

    torch.compiler.reset()
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    gradients = []
    for variant in (loss, compiled):
        model.zero_grad()
        variant(ids_BT).backward()
        gradients.append(model.embed.weight.grad.clone())
    assert_close(*gradients)
