"""What an export holds, and what is refused before there is one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from export_fixtures import FACTS, TINY, tiny_checkpoint, tiny_dataset, tiny_export, tiny_model
from safetensors.torch import load_file, save_file

from model.config import ModelConfig
from orchestrator.errors import StoreError
from orchestrator.export.folder import tensor_sha256
from orchestrator.export.write import write_export
from orchestrator.store import MARKER, commit, is_committed, read_manifest, verify_folder, writing


def remade(folder: Path, change: Callable[[Path], object]) -> Path:
    """The same committed folder after `change`, with a manifest that fits."""
    manifest = read_manifest(folder)
    with writing(folder) as tmp:
        shutil.copytree(folder, tmp, dirs_exist_ok=True)
        (tmp / MARKER).unlink()
        change(tmp)
        (tmp / "manifest.json").unlink()
        commit(tmp, folder, {k: v for k, v in manifest.items() if k != "files"})
    return folder


def write(root: Path, checkpoint: Path) -> Path:
    return write_export(
        checkpoint=checkpoint, dataset=tiny_dataset(root / "dataset"), into=root / "export", facts=FACTS
    )


def test_it_is_a_hugging_face_folder_with_manifest_and_marker(pristine: Path) -> None:
    assert {p.name for p in pristine.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors.index.json",
        "special_tokens_map.json",
        "generation_config.json",
        "README.md",
        "probe.safetensors",
        "manifest.json",
        "COMMITTED",
    }
    verify_folder(pristine)
    config = json.loads((pristine / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "float32"
    tokenizer = json.loads((pristine / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokenizer["model_max_length"] == TINY.context


def test_the_manifest_has_the_hash_of_every_tensor(pristine: Path) -> None:
    tensors = load_file(pristine / "model.safetensors")
    said = json.loads((pristine / "manifest.json").read_text())["tensors"]
    assert said == {name: tensor_sha256(tensor) for name, tensor in tensors.items()}
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())


def test_the_probe_holds_the_trainers_logits_and_those_of_the_exported_file(pristine: Path) -> None:
    probe = load_file(pristine / "probe.safetensors")
    with torch.inference_mode():
        want = tiny_model()(probe["input_ids"])
    torch.testing.assert_close(probe["logits"], want, rtol=0, atol=1e-5)
    torch.testing.assert_close(probe["trainer_logits"], want, rtol=0, atol=1e-5)


def test_the_same_inputs_give_the_same_bytes(pristine: Path, tmp_path: Path) -> None:
    again = tiny_export(tmp_path)
    for file in pristine.iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes(), file.name


def test_transformers_opens_it_and_agrees(pristine: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    probe = load_file(pristine / "probe.safetensors")
    model = AutoModelForCausalLM.from_pretrained(pristine).eval()
    with torch.inference_mode():
        torch.testing.assert_close(model(probe["input_ids"]).logits, probe["trainer_logits"], rtol=0, atol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(pristine)
    assert tokenizer.decode(tokenizer("héllo 🚢").input_ids) == "héllo 🚢"
    assert max(tokenizer("def add(").input_ids) < 300


@pytest.mark.parametrize("tied", [True, False])
def test_bf16_training_is_compared_by_the_rule_for_another_type(tmp_path: Path, tied: bool) -> None:
    config = ModelConfig(**{**TINY.to_dict(), "tie_embeddings": tied})
    export = tiny_export(tmp_path, precision="bf16", config=config)
    assert is_committed(export)
    probe = load_file(export / "probe.safetensors")
    assert (probe["logits"] - probe["trainer_logits"]).abs().max() > 1e-4


def test_a_checkpoint_that_does_not_compute_its_probe_is_refused(tmp_path: Path) -> None:
    def other_weights(folder: Path) -> None:
        save_file(tiny_model(seed=5).state_dict(), folder / "model.safetensors")

    checkpoint = remade(tiny_checkpoint(tmp_path / "step-00000020"), other_weights)
    with pytest.raises(StoreError, match=r"trainer recorded: prompt '.*', position \d+: a logit differs by \d") as e:
        write(tmp_path, checkpoint)
    assert e.value.exit_code == 6
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dataset", "step-00000020"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.safetensors", b"garbage", "model.safetensors is not readable"),
        ("probe.safetensors", b"", "probe.safetensors is not readable"),
        ("model.json", b"{}", "cannot be exported: KeyError"),
        ("model.json", b"not json", "cannot be exported: JSONDecodeError"),
    ],
)
def test_a_garbled_checkpoint_is_named(tmp_path: Path, file: str, content: bytes, message: str) -> None:
    checkpoint = remade(
        tiny_checkpoint(tmp_path / "step-00000020"), lambda folder: (folder / file).write_bytes(content)
    )
    with pytest.raises(StoreError, match=message):
        write(tmp_path, checkpoint)


def test_a_tokenizer_that_the_model_has_no_room_for_is_refused(tmp_path: Path) -> None:
    small = ModelConfig(**{**TINY.to_dict(), "vocab_size": 299})
    with pytest.raises(StoreError, match="has 300 tokens, the model 299"):
        write(tmp_path, tiny_checkpoint(tmp_path / "step-00000020", config=small))


def test_a_folder_without_marker_is_replaced(tmp_path: Path) -> None:
    left = tmp_path / "export"
    left.mkdir()
    (left / "half").touch()
    write(tmp_path, tiny_checkpoint(tmp_path / "step-00000020"))
    assert not (left / "half").exists()
    assert is_committed(left)


def test_a_checkpoint_whose_probe_others_cannot_read_is_refused(tmp_path: Path) -> None:
    def add_an_input(folder: Path) -> None:
        probe = load_file(folder / "probe.safetensors")
        save_file({**probe, "document_ids": probe["input_ids"] + 1}, folder / "probe.safetensors")

    checkpoint = remade(tiny_checkpoint(tmp_path / "step-00000020"), add_an_input)
    with pytest.raises(StoreError, match=r"the probe of .* has document_ids"):
        write(tmp_path, checkpoint)
