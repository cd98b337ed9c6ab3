"""Vectors for positions. Shapes: B rows, T tokens, S positions, D width."""

import math

import pytest
import torch
from torch.testing import assert_close

from model.config import ModelConfig
from model.positions import PositionTable, _sinusoidal_table, sinusoidal_table

CPU = torch.device("cpu")
CONFIG = ModelConfig(vocab_size=9, layers=1, width=12, heads=2, kv_heads=2, hidden=8, context=20, family="gpt2")
SINUSOIDS = ModelConfig(**{**CONFIG.to_dict(), "positions": "sinusoidal"})


@pytest.mark.parametrize("width", [1, 7, 12])
def test_sinusoids_are_the_papers_divided_by_the_root_of_the_width(width):
    table_SD = sinusoidal_table(50, width, device=CPU)
    for position in (0, 1, 49):
        for column in range(width):
            angle = position / 10_000 ** ((column - column % 2) / width)
            wave = math.cos(angle) if column % 2 else math.sin(angle)
            assert float(table_SD[position, column]) == pytest.approx(wave / math.sqrt(width), abs=1e-5)


def test_sinusoids_are_no_weights_and_stay_fp32_under_a_cast():
    module = PositionTable(SINUSOIDS).bfloat16()
    assert list(module.state_dict()) == []
    x_BTD = torch.zeros(1, 20, 12)
    assert_close(module(x_BTD)[0], sinusoidal_table(20, 12, device=CPU))
    assert module(x_BTD.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("config", [CONFIG, SINUSOIDS], ids=["learned", "sinusoids"])
def test_positions_by_token_are_those_rows_of_the_table(config):
    module = PositionTable(config)
    whole_TD = module(torch.zeros(1, 20, 12))[0]
    positions_BT = torch.tensor([[0, 1, 2, 0, 1], [4, 19, 0, 0, 3]])
    assert torch.equal(module(torch.zeros(2, 5, 12), positions_BT), whole_TD[positions_BT])
    assert torch.equal(module(torch.zeros(2, 5, 12))[1], whole_TD[:5])


def test_tables_made_in_inference_mode_can_be_trained_with():
    _sinusoidal_table.cache_clear()
    module = PositionTable(SINUSOIDS)
    x_BTD = torch.ones(1, 4, 12, requires_grad=True)
    with torch.inference_mode():
        module(x_BTD)
    (module(x_BTD) ** 2).sum().backward()
    assert x_BTD.grad is not None


def test_more_tokens_than_positions_are_refused():
    with pytest.raises(ValueError, match="21 tokens exceed the context of 20"):
        PositionTable(CONFIG)(torch.zeros(1, 21, 12))
