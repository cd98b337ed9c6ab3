"""The numbers that `plan` prints are those of the real modules."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from model.config import LABELLED, HeadConfig, ModelConfig, default_hidden
from model.families import FAMILIES, build

CONFIG = ModelConfig(vocab_size=50, layers=2, width=24, heads=4, kv_heads=2, hidden=40, context=16)
BERT = replace(CONFIG, family="bert", kv_heads=4, positions="learned", norm_eps=1e-12)


@st.composite
def configs(draw, families=("llama", "gpt2", "bert")):
    """Any small model: grouped heads, odd sizes, tied or not, positions of all kinds."""
    family = draw(st.sampled_from(families))
    kv_heads, group, pairs = (draw(st.integers(1, 3)) for _ in range(3))
    heads = kv_heads * group
    return ModelConfig(
        vocab_size=draw(st.integers(1, 60)),
        layers=draw(st.integers(1, 3)),
        width=heads * pairs * (2 if family == "llama" else 1),
        heads=heads,
        kv_heads=kv_heads if family == "llama" else heads,
        hidden=draw(st.integers(1, 50)),
        context=draw(st.integers(1, 20)),
        family=family,
        positions=draw(st.sampled_from(["rope"] if family == "llama" else ["learned", "sinusoidal"])),
        segments=draw(st.integers(1, 3)),
        tie_embeddings=family == "bert" or draw(st.booleans()),
    )


def numbers(module):
    return sum(p.numel() for p in module.parameters())


@settings(deadline=None, max_examples=50)
@given(configs(), st.integers(2, 5), st.data())
def test_parameter_counts_are_those_of_the_module(config, labels, data):
    kind = data.draw(st.sampled_from(list(FAMILIES[config.family].heads)))
    model = build(config, HeadConfig(kind, tuple("abcde"[:labels]) if kind in LABELLED else ()))
    backbone = model if config.is_decoder else model.backbone
    assert config.parameters + config.head_parameters(kind, labels) == numbers(model)
    assert config.layer_parameters == numbers(backbone.blocks[0])
    tables = [p.numel() for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()]
    untied = 0 if config.tie_embeddings else model.head.weight.numel()
    assert config.embedding_parameters == sum(tables) + untied
    matrices = sum(p.numel() for p in backbone.blocks.parameters() if p.dim() == 2)
    output = model.projection_weight_VD.numel() if config.is_decoder else 0
    assert config.matmul_parameters == matrices + output


def test_matmuls_of_a_head_are_those_of_each_judged_token():
    labels = ("a", "b", "c")
    for kind in FAMILIES["bert"].heads:
        head = HeadConfig(kind, labels if kind in LABELLED else ())
        model = build(BERT, head)
        judging = [module.weight.numel() for name, module in model.named_children() if name in ("dense", "span")]
        judging += [model.classify.weight.numel()] if kind == "token-classification" else []
        judging += [model.projection_weight_VD.numel()] if kind in ("mlm", "pretraining") else []
        assert BERT.head_matmul_parameters(kind, len(head.labels)) == sum(judging), kind
    assert CONFIG.head_matmul_parameters("lm") == 0


@settings(deadline=None, max_examples=50)
@given(configs())
def test_plain_data_round_trip_is_exact(config):
    assert ModelConfig.from_dict(config.to_dict()) == config


def test_data_of_before_there_were_families_is_a_llama():
    old = {key: value for key, value in CONFIG.to_dict().items() if key not in ("family", "positions", "segments")}
    assert ModelConfig.from_dict(old) == CONFIG
    assert (CONFIG.family, CONFIG.positions, CONFIG.norm_eps) == ("llama", "rope", 1e-5)


def test_what_is_left_out_is_the_familys_own():
    sizes = {"vocab_size": 9, "layers": 1, "width": 8, "heads": 2, "kv_heads": 2, "hidden": 9, "context": 4}
    gpt2, bert = (ModelConfig(family=family, **sizes) for family in ("gpt2", "bert"))
    assert (gpt2.positions, gpt2.norm_eps, gpt2.is_decoder) == ("learned", 1e-5, True)
    assert (bert.positions, bert.norm_eps, bert.is_decoder) == ("learned", 1e-12, False)


def test_training_flops_are_six_per_weight_and_twelve_per_attended_position():
    expected = 6 * CONFIG.matmul_parameters + 12 * 2 * 24 * 16
    assert CONFIG.training_flops_per_token() == expected
    assert CONFIG.training_flops_per_token(context=8) == expected - 12 * 2 * 24 * 8


def test_gpt2_small_has_its_published_number_of_parameters():
    gpt2 = {"vocab_size": 50257, "layers": 12, "width": 768, "heads": 12, "kv_heads": 12, "hidden": 3072}
    assert ModelConfig(family="gpt2", context=1024, **gpt2).parameters == 124_439_808


def test_bert_base_has_its_published_number_of_parameters():
    bert = {"vocab_size": 30522, "layers": 12, "width": 768, "heads": 12, "kv_heads": 12, "hidden": 3072}
    config = ModelConfig(family="bert", context=512, **bert)
    pooler = 768 * 769
    assert config.parameters + pooler == 109_482_240
    assert config.parameters + config.head_parameters("pretraining") == 110_106_428


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 25}, "width 25 is not a multiple of heads 4"),
        ({"kv_heads": 3}, "heads 4 is not a multiple of kv_heads 3"),
        ({"width": 20}, "width 20 / heads 4 is odd"),
        ({"family": "t5"}, "family 't5' does not exist; there are llama, gpt2, bert"),
        ({"positions": "learned"}, "positions 'learned' do not exist for llama; choose rope"),
        ({"family": "gpt2"}, "positions 'rope' do not exist for gpt2; choose learned or sinusoidal"),
        ({"family": "gpt2", "positions": None}, "kv_heads 2 below heads 4 exists for llama only"),
        ({"family": "bert", "positions": None, "kv_heads": 4, "tie_embeddings": False}, "tie_embeddings false"),
    ],
)
def test_numbers_that_make_no_model_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)


@pytest.mark.parametrize(
    ("kind", "labels", "message"),
    [
        ("classification", (), "'classification' needs at least two labels"),
        ("token-classification", ("O",), "needs at least two labels, not \\['O'\\]"),
        ("mlm", ("a", "b"), "'mlm' has no labels, yet 2 are given"),
        ("classification", ("a", "b", "a"), "labels are given twice: a"),
    ],
)
def test_labels_that_do_not_fit_the_head_are_refused(kind, labels, message):
    with pytest.raises(ValueError, match=message):
        HeadConfig(kind, labels)


@pytest.mark.parametrize("head", [HeadConfig(), HeadConfig("classification", ("b", "a"))])
def test_a_head_survives_plain_data(head):
    assert HeadConfig.from_dict(json.loads(json.dumps(head.to_dict()))) == head


@pytest.mark.parametrize("width", [1, 64, 256, 4096])
def test_default_hidden_is_eight_thirds_rounded_up_to_64(width):
    hidden = default_hidden(width)
    assert hidden % 64 == 0
    assert 0 <= hidden - 8 * width // 3 < 64
    assert default_hidden(width, "gpt2") == default_hidden(width, "bert") == 4 * width


def test_the_configuration_imports_no_torch():
    code = "import sys, model.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
