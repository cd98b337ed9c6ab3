"""Folders that transformers wrote become proven exports; what is wrong with one is named."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from export_fixtures import tiny_tokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertConfig, GPT2Config, LlamaConfig

from orchestrator.errors import StoreError
from orchestrator.export.importing import import_folder
from orchestrator.export.prove import load_proven, prove_export
from orchestrator.store import Store, sha256_file

LLAMA = LlamaConfig(
    vocab_size=304,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=40,
    bos_token_id=None,
    eos_token_id=0,
)
GPT2 = GPT2Config(vocab_size=304, n_embd=32, n_layer=2, n_head=4, n_positions=40, bos_token_id=0, eos_token_id=0)
BERT_SIZES = {
    "vocab_size": 304,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
}
BERT = BertConfig(
    **BERT_SIZES,
    num_labels=3,
    id2label={0: "bad", 1: "so so", 2: "good"},
    label2id={"bad": 0, "so so": 1, "good": 2},
)
MODELS = {
    "llama": ("LlamaForCausalLM", LLAMA, "lm"),
    "gpt2": ("GPT2LMHeadModel", GPT2, "lm"),
    "mlm": ("BertForMaskedLM", BERT, "mlm"),
    "pretraining": ("BertForPreTraining", BERT, "pretraining"),
    "classification": ("BertForSequenceClassification", BERT, "classification"),
    "token-classification": ("BertForTokenClassification", BERT, "token-classification"),
    "question-answering": ("BertForQuestionAnswering", BertConfig(**BERT_SIZES), "question-answering"),
    "embedding": ("BertModel", BERT, "embedding"),
}
Q = "model.layers.1.self_attn.q_proj.weight"


def folder_of(root: Path, case: str = "llama", *, dtype: torch.dtype = torch.float32, **save: Any) -> Path:
    """A folder as transformers saves it, with random weights."""
    torch.manual_seed(3)
    name, config, _ = MODELS[case]
    model = getattr(transformers, name)(config).to(dtype)
    folder = root / "Their Model"
    model.save_pretrained(folder, **save)
    bert = config.model_type == "bert"
    (folder / "tokenizer.json").write_text(tiny_tokenizer("wordpiece" if bert else "bpe"))
    special = {"sep_token": "[SEP]", "pad_token": "[PAD]"} if bert else {"eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "X", **special}))
    return folder


def changed(folder: Path, file: str, **settings: Any) -> Path:
    said = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).write_text(json.dumps(said | settings))
    return folder


def with_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def refused(folder: Path, store: Store, message: str) -> StoreError:
    with pytest.raises(StoreError, match=message) as caught:
        import_folder(folder, store)
    assert caught.value.exit_code == 6
    assert caught.value.fix
    assert not [path for path in store.root.glob("exports/*") if path.is_dir()]
    return caught.value


def theirs(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    with torch.inference_mode():
        outputs = model.eval()(**inputs)
    for name in ("logits", "prediction_logits"):
        if name in outputs:
            return outputs[name]
    if "start_logits" in outputs:
        return torch.stack([outputs["start_logits"], outputs["end_logits"]], -1)
    weights = inputs["attention_mask"][..., None]
    return (outputs["last_hidden_state"] * weights).sum(1) / weights.sum(1)


@pytest.mark.parametrize("case", MODELS)
def test_an_import_proves_and_computes_what_its_source_does(case: str, tmp_path: Path, store: Store) -> None:
    source = folder_of(tmp_path, case)
    made = import_folder(source, store)
    assert made.parent == store.exports
    assert made.name.startswith("Their-Model-")
    proven = prove_export(made)
    manifest = proven.manifest
    assert (manifest.origin, manifest.head.kind, manifest.run, manifest.step) == ("imported", MODELS[case][2], None, 0)
    assert manifest.source is not None
    assert manifest.source.name == "Their Model"
    assert {f.path: f.sha256 for f in manifest.source.files} == {
        path.name: sha256_file(path) for path in source.iterdir()
    }
    probe = load_file(made / "probe.safetensors")
    inputs = {name: tensor for name, tensor in probe.items() if not name.endswith("logits")}
    name = MODELS[case][0]
    for folder in (source, made):
        model = getattr(transformers, name).from_pretrained(folder)
        torch.testing.assert_close(theirs(model, inputs), probe["logits"], rtol=0, atol=1e-4)


def test_labels_come_along(tmp_path: Path, store: Store) -> None:
    made = import_folder(folder_of(tmp_path, "classification"), store)
    assert prove_export(made).manifest.head.labels == ["bad", "so so", "good"]
    assert transformers.AutoModelForSequenceClassification.from_pretrained(made).config.id2label[2] == "good"


def test_the_same_files_are_imported_once_under_any_name(tmp_path: Path, store: Store) -> None:
    source = folder_of(tmp_path)
    made = import_folder(source, store)
    before = (made / "manifest.json").stat().st_mtime_ns
    assert import_folder(source, store) == made
    assert import_folder(source.rename(tmp_path / "other"), store) == made
    assert (made / "manifest.json").stat().st_mtime_ns == before
    changed(tmp_path / "other", "generation_config.json", temperature=0.7)
    again = import_folder(tmp_path / "other", store)
    assert again != made
    assert again.name.startswith("other-")


def test_shards_are_read_together(tmp_path: Path, store: Store) -> None:
    source = folder_of(tmp_path, max_shard_size="20KB")
    assert len(list(source.glob("model-*.safetensors"))) > 1
    proven = load_proven(import_folder(source, store))
    want = transformers.AutoModelForCausalLM.from_pretrained(source).state_dict()[Q]
    torch.testing.assert_close(proven.model.blocks[1].attention.q.weight, want, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_every_value(dtype: torch.dtype, tmp_path: Path, store: Store) -> None:
    source = folder_of(tmp_path, dtype=dtype)
    made = import_folder(source, store)
    ours, original = load_file(made / "model.safetensors"), load_file(source / "model.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in ours.values())
    assert all(torch.equal(ours[name], original[name].float()) for name in ours)
    load_proven(made)


def test_missing_extra_and_misshapen_tensors_are_named(tmp_path: Path, store: Store) -> None:
    source = with_tensors(folder_of(tmp_path), lambda t: t.update(added=torch.zeros(2), gone=torch.zeros(1)))
    refused(source, store, r"not expected: .*(added, gone|gone, added)")
    with_tensors(source, lambda t: (t.pop("added"), t.pop("gone"), t.pop(Q)))
    refused(source, store, rf"missing: {Q}")
    with_tensors(source, lambda t: t.update({Q: torch.zeros(3, 32)}))
    refused(source, store, rf"{Q} is \[3, 32\] in the file and \[32, 32\] by config\.json")


def test_weights_of_another_type_are_named(tmp_path: Path, store: Store) -> None:
    source = with_tensors(folder_of(tmp_path), lambda t: t.update({Q: t[Q].to(torch.float8_e4m3fn)}))
    refused(source, store, rf"{Q} of .* is torch\.float8_e4m3fn; float32, bfloat16 and float16 are read")
    with_tensors(source, lambda t: t.update({Q: torch.ones(32, 32, dtype=torch.int8)}))
    refused(source, store, rf"{Q} of .* is torch\.int8")


def test_weights_that_are_no_numbers_are_named(tmp_path: Path, store: Store) -> None:
    source = with_tensors(folder_of(tmp_path), lambda t: t[Q].view(-1)[5].fill_(math.nan))
    refused(source, store, rf"{Q} of .* holds values that are not finite")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba' is not supported; one of llama, gpt2, bert is"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling"),
        ({"hidden_size": 33}, "width 33 is not a multiple of heads 4"),
        ({"hidden_size": "wide"}, "hidden_size 'wide' is not supported; only a whole number from 1 is"),
        ({"num_hidden_layers": -1}, "num_hidden_layers -1 is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_a_model_that_is_not_ours_is_named(
    settings: dict[str, Any], message: str, tmp_path: Path, store: Store
) -> None:
    refused(changed(folder_of(tmp_path), "config.json", **settings), store, message)


def test_a_tokenizer_beyond_the_vocabulary_is_refused(tmp_path: Path, store: Store) -> None:
    source = folder_of(tmp_path)
    data = json.loads((source / "tokenizer.json").read_text())
    more = [{**data["added_tokens"][0], "id": i, "content": f"<|more {i}|>"} for i in range(300, 306)]
    data["added_tokens"] += more
    (source / "tokenizer.json").write_text(json.dumps(data))
    error = refused(source, store, r"the largest id of .*tokenizer\.json is 305, the model's vocabulary ends at 303")
    assert "belongs to the model" in str(error.fix)


def test_pickles_are_never_opened(tmp_path: Path, store: Store) -> None:
    source = folder_of(tmp_path)
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    error = refused(source, store, r"are pickles \(pytorch_model\.bin\): reading one may run any code")
    assert "save_pretrained" in str(error.fix)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("config.json", "is no Hugging Face folder"),
        ("tokenizer.json", "has no tokenizer.json"),
        ("model.safetensors", "has neither model.safetensors nor model.safetensors.index.json"),
    ],
)
def test_a_file_that_is_absent_is_named(file: str, message: str, tmp_path: Path, store: Store) -> None:
    source = folder_of(tmp_path)
    (source / file).unlink()
    refused(source, store, message)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors", "tokenizer_config.json"])
def test_a_file_that_is_garbled_is_named(file: str, tmp_path: Path, store: Store) -> None:
    source = folder_of(tmp_path)
    (source / file).write_bytes(b"\x00garbage")
    refused(source, store, file.replace(".", r"\."))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "has no weight_map"),
        ({"weight_map": {"a": "model-00001-of-00002.safetensors"}}, "names model-00001-of-00002.safetensors, which is"),
        ({"weight_map": {"a": "../elsewhere.safetensors"}}, "which is no safetensors file beside it"),
        ({"weight_map": {"a": "pytorch_model-1.bin"}}, "which is no safetensors file beside it"),
    ],
)
def test_an_index_that_names_no_files_is_refused(
    index: dict[str, Any], message: str, tmp_path: Path, store: Store
) -> None:
    source = folder_of(tmp_path)
    (source / "model.safetensors").unlink()
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(source, store, message)


class TestTheEndToken:
    """Where it is looked for, and what to do where it is nowhere."""

    def test_the_tokenizers_own_files_say_it_first(self, tmp_path: Path, store: Store) -> None:
        source = changed(folder_of(tmp_path), "config.json", eos_token_id=7)
        assert load_proven(import_folder(source, store)).eos_id == 0

    def test_else_the_configuration(self, tmp_path: Path, store: Store) -> None:
        source = folder_of(tmp_path)
        (source / "tokenizer_config.json").unlink()
        assert load_proven(import_folder(source, store)).eos_id == 0

    def test_one_that_text_may_spell_is_refused(self, tmp_path: Path, store: Store) -> None:
        source = changed(folder_of(tmp_path), "config.json", eos_token_id=7)
        (source / "tokenizer_config.json").unlink()
        error = refused(source, store, "is an ordinary entry of its vocabulary")
        assert "eos_token" in str(error.fix)

    def test_none_at_all_is_refused_with_the_way_out(self, tmp_path: Path, store: Store) -> None:
        source = changed(folder_of(tmp_path), "config.json", eos_token_id=None)
        (source / "tokenizer_config.json").unlink()
        (source / "generation_config.json").unlink(missing_ok=True)
        text = (source / "tokenizer.json").read_text().replace("<|endoftext|>", "<<stop>>")
        (source / "tokenizer.json").write_text(text)
        error = refused(source, store, "no end-of-text token")
        assert 'name it as "eos_token" in tokenizer_config.json' in str(error.fix)

    def test_further_ends_of_generation_are_kept(self, tmp_path: Path, store: Store) -> None:
        source = changed(folder_of(tmp_path), "generation_config.json", eos_token_id=[5, 0])
        generation = json.loads((import_folder(source, store) / "generation_config.json").read_text())
        assert generation["eos_token_id"] == [0, 5]


def test_a_tokenizer_that_cuts_and_pads_is_taken_without_that(tmp_path: Path, store: Store) -> None:
    source = folder_of(tmp_path)
    cutting = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    changed(source, "tokenizer.json", truncation=cutting)
    proven = load_proven(import_folder(source, store))
    assert len(proven.tokenizer.encode("def add(a, b): return a + b").ids) > 4


def test_a_chat_template_comes_along(tmp_path: Path, store: Store) -> None:
    source = folder_of(tmp_path)
    (source / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    made = import_folder(source, store)
    tokenizer = transformers.AutoTokenizer.from_pretrained(made)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi!"


def test_an_export_of_ours_may_be_imported(tmp_path: Path, store: Store, pristine: Path) -> None:
    made = import_folder(pristine, store)
    assert load_proven(made).manifest.tensors == load_proven(pristine).manifest.tensors


def test_a_disk_that_is_full_leaves_nothing(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from orchestrator.export import contents

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "model.safetensors")

    monkeypatch.setattr(contents, "save_file", full)
    with pytest.raises(StoreError, match="the disk is full while importing Their Model"):
        import_folder(folder_of(tmp_path), store)
    assert not [p for p in store.exports.iterdir() if p.is_dir()]
