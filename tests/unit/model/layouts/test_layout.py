"""What the layouts share."""

import pytest
import torch

from model.config import ModelConfig
from model.layouts.layout import (
    USUAL_SIZES,
    inverse,
    one_dropout,
    renamed,
    require_keys,
    require_only,
    their_sizes,
    with_leaves,
    without_copy,
)

NAMES = with_leaves({"embed": "wte", "blocks.#.norm_1": "h.#.ln_1"})


def test_only_the_number_of_the_layer_is_carried_over():
    state = {"embed.weight": torch.zeros(1), "blocks.12.norm_1.bias": torch.ones(1)}
    theirs = renamed(state, NAMES)
    assert list(theirs) == ["wte.weight", "h.12.ln_1.bias"]
    assert list(renamed(theirs, inverse(NAMES))) == list(state)


@pytest.mark.parametrize("name", ["blocks.0.norm_2.bias", "embed", "blocks.x.norm_1.weight"])
def test_unknown_names_are_refused(name):
    with pytest.raises(ValueError, match=f"tensor '{name}' is not supported"):
        renamed({name: torch.zeros(1)}, NAMES)


def test_the_first_supported_value_is_the_default():
    require_only({}, {"act": ("gelu", "relu")})
    require_only({"act": "relu"}, {"act": ("gelu", "relu")})
    with pytest.raises(ValueError, match="act 'tanh' is not supported; only 'gelu' or 'relu' is"):
        require_only({"act": "tanh"}, {"act": ("gelu", "relu")})


def test_missing_sizes_are_named():
    with pytest.raises(ValueError, match=r"n_embd, n_head missing from config\.json"):
        require_keys({"n_layer": 2}, {"layers": "n_layer", "width": "n_embd", "heads": "n_head"})


def test_sizes_cross_both_ways_under_their_names():
    sizes = {"vocab_size": 9, "layers": 1, "width": 8, "heads": 2, "hidden": 7}
    theirs = their_sizes(ModelConfig(**sizes, kv_heads=2, context=4), USUAL_SIZES)
    assert theirs == {
        "vocab_size": 9,
        "num_hidden_layers": 1,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "intermediate_size": 7,
    }
    assert require_keys(theirs, USUAL_SIZES) == sizes


def test_one_dropout_stands_for_all_or_none():
    assert one_dropout({"a": 0, "b": 0.0}, "a", "b") == 0.0
    assert one_dropout({}, "a", "b") == 0.1
    with pytest.raises(ValueError, match=r"a 0\.0, b 0\.1 differ"):
        one_dropout({"a": 0}, "a", "b")


def test_a_tensor_under_its_second_name_alone_is_taken():
    table, other = torch.ones(2), torch.zeros(2)
    assert without_copy({"copy": table}, copy="copy", of="table") == {"table": table}
    assert without_copy({"copy": table, "table": table}, copy="copy", of="table") == {"table": table}
    assert without_copy({"table": table}, copy="copy", of="table") == {"table": table}
    with pytest.raises(ValueError, match="copy differs from table"):
        without_copy({"copy": other, "table": table}, copy="copy", of="table")
