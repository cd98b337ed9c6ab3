"""The numbers that `plan` prints are those of the real modules."""

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import ModelConfig, default_hidden
from model.gpt import GPT

CONFIG = ModelConfig(vocab_size=50, layers=2, width=24, heads=4, kv_heads=2, hidden=40, context=16)


@st.composite
def configs(draw):
    """Any small model: grouped heads, odd sizes, tied or not."""
    kv_heads, group, pairs = (draw(st.integers(1, 3)) for _ in range(3))
    heads = kv_heads * group
    return ModelConfig(
        vocab_size=draw(st.integers(1, 60)),
        layers=draw(st.integers(1, 3)),
        width=heads * pairs * 2,
        heads=heads,
        kv_heads=kv_heads,
        hidden=draw(st.integers(1, 50)),
        context=draw(st.integers(1, 20)),
        tie_embeddings=draw(st.booleans()),
    )


@settings(deadline=None, max_examples=50)
@given(configs())
def test_parameter_counts_are_those_of_the_module(config):
    model = GPT(config)
    assert config.parameters == sum(p.numel() for p in model.parameters())
    assert config.layer_parameters == sum(p.numel() for p in model.blocks[0].parameters())
    matrices = [p for block in model.blocks for p in block.parameters() if p.dim() == 2]
    output = model.embed if model.head is None else model.head
    assert config.matmul_parameters == sum(p.numel() for p in matrices) + output.weight.numel()


@settings(deadline=None, max_examples=50)
@given(configs())
def test_plain_data_round_trip_is_exact(config):
    assert ModelConfig.from_dict(config.to_dict()) == config


def test_training_flops_are_six_per_weight_and_twelve_per_attended_position():
    expected = 6 * CONFIG.matmul_parameters + 12 * 2 * 24 * 16
    assert CONFIG.training_flops_per_token() == expected
    assert CONFIG.training_flops_per_token(context=8) == expected - 12 * 2 * 24 * 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 25}, "width 25 is not a multiple of heads 4"),
        ({"kv_heads": 3}, "heads 4 is not a multiple of kv_heads 3"),
        ({"width": 20}, "width 20 / heads 4 is odd"),
    ],
)
def test_numbers_that_make_no_model_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)


@pytest.mark.parametrize("width", [1, 64, 256, 4096])
def test_default_hidden_is_eight_thirds_rounded_up_to_64(width):
    hidden = default_hidden(width)
    assert hidden % 64 == 0
    assert 0 <= hidden - 8 * width // 3 < 64


def test_the_configuration_imports_no_torch():
    code = "import sys, model.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
