"""Weights are read from a checkpoint, an export or a Hugging Face folder as they lie there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from export_fixtures import HEADS, SHAPES, alter, forge_manifest, tiny_export, tiny_model
from safetensors.torch import load_file, save_file
from weights_fixtures import make_hf, make_run

from orchestrator.checkpoint.origin import find_origin
from orchestrator.errors import StoreError
from orchestrator.store import Store
from orchestrator.train.weights.given import SourceWeights, read_weights

BERT = SHAPES["bert"]


def read(folder: Path) -> SourceWeights:
    return read_weights(find_origin(str(folder), Store(folder / "elsewhere")))


@pytest.mark.parametrize("kind", ["run", "export", "hugging-face"])
def test_every_kind_of_folder_tells_its_network_and_head(tmp_path: Path, kind: str) -> None:
    head = HEADS["classification"]
    makers = {
        "run": lambda: make_run(tmp_path, family="bert", head=head),
        "export": lambda: tiny_export(tmp_path, config=BERT, head=head),
        "hugging-face": lambda: make_hf(tmp_path / "hf", config=BERT, head=head),
    }
    found, wanted = read(makers[kind]()), tiny_model(BERT, head).state_dict()
    assert (found.config, found.head) == (BERT, head)
    assert found.state.keys() == wanted.keys()
    assert all(torch.equal(found.state[name], wanted[name]) for name in wanted)


def test_the_stored_type_is_kept(tmp_path: Path) -> None:
    folder = make_hf(tmp_path / "hf")
    alter(folder, lambda tensors: tensors.update({name: tensor.bfloat16() for name, tensor in tensors.items()}))
    state = read(folder).state
    wanted = tiny_model().state_dict()
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    assert all(torch.equal(state[name], wanted[name].bfloat16()) for name in wanted)


@pytest.mark.parametrize(("architecture", "kind"), [("BertForMaskedLM", "mlm"), ("BertModel", "embedding")])
def test_the_pooler_stands_beside_a_head_that_does_not_read_it(tmp_path: Path, architecture: str, kind: str) -> None:
    folder = make_hf(tmp_path / "hf", config=BERT, head=HEADS["pretraining"])
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**about, "architectures": [architecture]}))
    if kind == "embedding":  # a bare encoder's names have no prefix
        tensors = load_file(folder / "model.safetensors")
        bare = {n.removeprefix("bert."): t for n, t in tensors.items() if n.startswith("bert.")}
        save_file(bare, folder / "model.safetensors")
    found, wanted = read(folder), tiny_model(BERT, HEADS["pretraining"]).state_dict()
    assert found.head.kind == kind
    for name in ("backbone.pooler.weight", "backbone.pooler.bias"):
        assert torch.equal(found.state[name], wanted[name])


def test_a_folder_without_a_pooler_has_none(tmp_path: Path) -> None:
    state = read(make_hf(tmp_path / "hf", config=BERT, head=HEADS["mlm"])).state
    assert not [name for name in state if "pooler" in name]


def test_a_checkpoint_of_another_version_is_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path) / "checkpoints" / "step-00000020"
    about = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**about, "flux": 3}))
    with pytest.raises(StoreError, match=r"model.json is absent or was altered"):
        read(folder)
    forge_manifest(folder)
    with pytest.raises(StoreError, match=r"model.json is no network of this version: .*flux"):
        read(folder)


def test_a_network_of_ones_own_is_named_as_such(tmp_path: Path) -> None:
    folder = make_run(tmp_path) / "checkpoints" / "step-00000020"
    (folder / "model.json").write_text('{"custom": {"class": "examples.digits:Digits"}}')
    forge_manifest(folder)
    with pytest.raises(StoreError, match="is of a network of your own") as refused:
        read(folder)
    assert "gpt or bert" in str(refused.value.fix)


def test_pickles_and_unknown_networks_are_refused(tmp_path: Path) -> None:
    folder = make_hf(tmp_path / "hf")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(StoreError, match="reading one may run any code"):
        read(folder)
    (folder / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(StoreError, match="model_type 'mamba' is not supported"):
        read(folder)
