"""The way in to all layouts: what does not fit is refused by name. Each layout's values: `layouts/`."""

from dataclasses import replace

import pytest
import torch

from model.config import HeadConfig, ModelConfig
from model.families import build
from model.huggingface import from_hf_config, from_hf_state, head_from_hf_config, to_hf_config, to_hf_state

SIZES = {"vocab_size": 67, "layers": 2, "width": 48, "heads": 6, "kv_heads": 6, "hidden": 80, "context": 40}
CONFIGS = {family: ModelConfig(family=family, **SIZES) for family in ("llama", "gpt2", "bert")}
HEADS = {"llama": HeadConfig(), "gpt2": HeadConfig(), "bert": HeadConfig("classification", ("no", "yes"))}
every_family = pytest.mark.parametrize("family", CONFIGS)
A_MATRIX = {
    "llama": "model.layers.1.mlp.up_proj.weight",
    "gpt2": "transformer.h.1.attn.c_attn.weight",
    "bert": "bert.encoder.layer.1.intermediate.dense.weight",
}


def exported(family):
    config, head = CONFIGS[family], HEADS[family]
    return to_hf_state(build(config, head).initialise(0).state_dict(), config, head)


def hf_config(family, **changes):
    return (
        to_hf_config(CONFIGS[family], HEADS[family], bos_token_id=1, eos_token_id=2, pad_token_id=3, dtype="float32")
        | changes
    )


@every_family
def test_settings_and_heads_cross_both_ways(family):
    data = hf_config(family)
    assert (data["bos_token_id"], data["eos_token_id"], data["pad_token_id"]) == (1, 2, 3)
    assert from_hf_config(data) == CONFIGS[family]
    assert head_from_hf_config(data) == HEADS[family]


@every_family
def test_a_missing_tensor_is_named(family):
    state = exported(family)
    del state[A_MATRIX[family]]
    with pytest.raises(ValueError, match=f"do not fit config.json: missing: {A_MATRIX[family]}$"):
        from_hf_state(state, CONFIGS[family], HEADS[family])


@every_family
def test_an_extra_tensor_is_named(family):
    state = exported(family) | {"adapter.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"not expected: .*adapter\.weight"):
        from_hf_state(state, CONFIGS[family], HEADS[family])


@every_family
def test_a_tensor_of_another_shape_is_named_with_both(family):
    state = exported(family)
    rows, columns = state[A_MATRIX[family]].shape
    state[A_MATRIX[family]] = torch.zeros(rows + 1, columns)
    message = rf"{A_MATRIX[family]} is \[{rows + 1}, {columns}\] in the file and \[{rows}, {columns}\] by config"
    with pytest.raises(ValueError, match=message):
        from_hf_state(state, CONFIGS[family], HEADS[family])


@every_family
def test_another_vocabulary_is_told_by_its_table(family):
    other = replace(CONFIGS[family], vocab_size=68)
    with pytest.raises(ValueError, match=r"is \[67, 48\] in the file and \[68, 48\] by config\.json"):
        from_hf_state(exported(family), other, HEADS[family])


def test_a_file_of_another_family_names_a_few_of_many():
    with pytest.raises(
        ValueError, match=r"missing: transformer\.wte\.weight, .* and 20 more; not expected: .* and \d+ more"
    ):
        from_hf_state(exported("llama"), CONFIGS["gpt2"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba' is not supported; one of llama, gpt2, bert is"),
        ({"quantization_config": {"bits": 4}}, "quantization_config .* is not supported"),
    ],
)
def test_models_that_are_not_ours_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        from_hf_config(hf_config("llama", **change))


def test_missing_sizes_are_named():
    with pytest.raises(ValueError, match="hidden_size, num_attention_heads missing from config"):
        from_hf_config({"model_type": "llama", "vocab_size": 9, "intermediate_size": 7, "num_hidden_layers": 1})


@pytest.mark.parametrize(
    ("family", "architectures"),
    [
        ("llama", ["LlamaForSequenceClassification"]),
        ("gpt2", ["GPT2DoubleHeadsModel"]),
        ("bert", ["BertForMultipleChoice"]),
        ("bert", []),
        ("bert", None),
    ],
)
def test_architectures_that_are_not_ours_are_refused_by_name(family, architectures):
    with pytest.raises(ValueError, match=r"architectures \[.*\] is not supported; one of "):
        head_from_hf_config(hf_config(family, architectures=architectures))


def test_a_decoder_that_names_no_architecture_is_a_language_model():
    assert head_from_hf_config({"model_type": "gpt2"}) == HeadConfig("lm")


def test_labels_are_in_the_order_of_their_numbers_and_have_defaults():
    data = hf_config("bert", id2label={"1": "b", "0": "a", "10": "k"} | {str(i): f"x{i}" for i in range(2, 10)})
    assert head_from_hf_config(data).labels[:2] == ("a", "b")
    assert head_from_hf_config(data).labels[-1] == "k"
    assert head_from_hf_config(hf_config("bert", id2label=None)).labels == ("LABEL_0", "LABEL_1")
    assert len(head_from_hf_config(hf_config("bert", id2label=None, num_labels=5)).labels) == 5
    with pytest.raises(ValueError, match=r"id2label numbers its labels \[0, 2\]"):
        head_from_hf_config(hf_config("bert", id2label={"0": "a", "2": "c"}))


def test_a_head_that_the_family_does_not_carry_is_refused():
    with pytest.raises(ValueError, match="bert does not carry the head 'lm'"):
        to_hf_config(CONFIGS["bert"], bos_token_id=None, eos_token_id=None, dtype="float32")
