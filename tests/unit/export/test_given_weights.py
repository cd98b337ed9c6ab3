"""What a folder's network and tensors are, or why it cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from export_fixtures import HEADS, LM, SHAPES, alter, tiny_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from weights_fixtures import make_hf

from orchestrator.errors import StoreError
from orchestrator.export.given_weights import (
    INDEX,
    read_file,
    read_json,
    read_network,
    read_tensors,
    under_our_names,
    weight_files,
)

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def read(folder: Path) -> dict[str, Tensor]:
    """As both users of the module do."""
    config, head = read_network(folder)
    return under_our_names(folder, read_tensors(folder), config, head)


def set_index(folder: Path, value: Any) -> None:
    (folder / INDEX).write_text(json.dumps(value))


def set_config(folder: Path, **settings: Any) -> None:
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | settings))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("shards", [1, 2])
def test_network_and_tensors_are_those_that_were_written(tmp_path: Path, family: str, shards: int) -> None:
    config, head = SHAPES[family], LM if family != "bert" else HEADS["classification"]
    folder = make_hf(tmp_path / "hf", config=config, head=head, shards=shards)
    assert read_network(folder) == (config, head)
    found, wanted = read(folder), tiny_model(config, head).state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_the_index_stands_before_its_files_and_one_file_before_the_index(tmp_path: Path) -> None:
    folder = make_hf(tmp_path / "hf", shards=2)
    assert [path.name for path in weight_files(folder)] == [INDEX, *SHARDS]
    save_file({"only": torch.zeros(1)}, folder / "model.safetensors")
    assert [path.name for path in weight_files(folder)] == ["model.safetensors"]
    assert read_tensors(folder).keys() == {"only"}


def test_tensors_keep_their_names_and_types(tmp_path: Path) -> None:
    folder = make_hf(tmp_path / "hf")
    alter(folder, lambda tensors: tensors.update({n: t.bfloat16() for n, t in tensors.items() if "norm" in n}))
    tensors = read_tensors(folder)
    assert tensors["model.norm.weight"].dtype == torch.bfloat16
    assert tensors["model.embed_tokens.weight"].dtype == torch.float32


def test_a_pickle_is_refused_with_the_way_out(tmp_path: Path) -> None:
    source = make_hf(tmp_path / "hf")
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(StoreError, match=r"pickle \(pytorch_model.bin\)(.|\n)*safe_serialization=True"):
        read(source)
    (source / "pytorch_model.bin").unlink()
    with pytest.raises(StoreError, match="has no weights"):
        read(source)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".pkl"])
def test_pickles_are_known_by_their_names_and_never_opened(tmp_path: Path, suffix: str) -> None:
    for number in range(5):
        (tmp_path / f"part-{number}{suffix}").write_bytes(b"no pickle, and nobody finds out")
    named = rf"part-0\{suffix}, part-1\{suffix}, part-2\{suffix}"
    with pytest.raises(StoreError, match=rf"are pickles \({named}\): reading one may run any code"):
        weight_files(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    assert read_tensors(tmp_path).keys() == {"a"}


@pytest.mark.parametrize(
    ("weight_map", "said"),
    [
        ({"a": "../other.safetensors"}, "does not say in which files"),
        (None, "does not say in which files"),
        ({"a": "model-00001-of-00002.safetensors"}, "tensor a of .* is in none of its files"),
        ({"a": "model-00009-of-00002.safetensors"}, "model-00009-of-00002.safetensors is not readable"),
        ({"a": "pytorch_model-1.bin"}, "names 'pytorch_model-1.bin', which is no safetensors file beside it"),
        ({"a": 1}, "has no weight_map"),
        (["a"], "has no weight_map"),
        ({}, "has no weight_map"),
    ],
)
def test_an_index_must_name_files_of_the_folder(tmp_path: Path, weight_map: object, said: str) -> None:
    source = make_hf(tmp_path / "hf", shards=2)
    set_index(source, {"weight_map": weight_map})
    with pytest.raises(StoreError, match=said):
        read(source)


def test_a_file_beside_the_folder_is_not_read(tmp_path: Path) -> None:
    source = make_hf(tmp_path / "hf", shards=2)
    save_file({"secret": torch.zeros(1)}, tmp_path / "other.safetensors")
    set_index(source, {"weight_map": {"secret": "../other.safetensors"}})
    with pytest.raises(StoreError, match=r"names '../other.safetensors', which is no safetensors file beside it"):
        read_tensors(source)


def test_an_index_may_name_a_second_copy_that_its_writer_left_out(tmp_path: Path) -> None:
    source = make_hf(tmp_path / "hf", shards=2)
    weight_map = json.loads((source / INDEX).read_text())["weight_map"]
    set_index(source, {"weight_map": {**weight_map, "lm_head.weight": SHARDS[0]}})
    assert read(source).keys() == tiny_model().state_dict().keys()
    set_config(source, tie_word_embeddings=False)
    with pytest.raises(StoreError, match=r"missing: lm_head.weight; tensor lm_head.weight of .* is in none"):
        read(source)


def test_of_many_tensors_in_no_file_the_first_is_named(tmp_path: Path) -> None:
    source = make_hf(tmp_path / "hf", shards=2)
    set_index(source, {"weight_map": {f"t{number:02d}": SHARDS[0] for number in range(20)}})
    with pytest.raises(StoreError, match=r"tensor t00 of .* is in none of its files, nor 19 more"):
        read(source)


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    source = make_hf(tmp_path / "hf")
    tensors = load_file(source / "model.safetensors")
    save_file({"stray" if n == "model.norm.weight" else n: t for n, t in tensors.items()}, source / "model.safetensors")
    with pytest.raises(StoreError, match=r"missing: model.norm.weight; not expected: stray") as caught:
        read(source)
    assert "in none of its files" not in caught.value.message  # there is no index
    assert "save_pretrained" in str(caught.value.fix)


def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    source = make_hf(tmp_path / "hf")
    set_config(source, model_type="mamba")
    with pytest.raises(StoreError, match=r"a model that Slipway has: model_type 'mamba' is not supported"):
        read_network(source)
    (source / "config.json").write_text("{")
    with pytest.raises(StoreError, match=r"config.json is not readable"):
        read_network(source)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"[1]", "holds no JSON object"),
        (b"\xff\x00", "is not readable"),
        (b"", "is not readable"),
        (None, "No such"),
    ],
)
def test_a_json_file_holds_an_object(tmp_path: Path, raw: bytes | None, said: str) -> None:
    if raw is not None:
        (tmp_path / "a.json").write_bytes(raw)
    with pytest.raises(StoreError, match=said) as caught:
        read_json(tmp_path / "a.json")
    assert str(caught.value.fix).startswith("take the folder whole")


def test_a_garbled_file_of_tensors_is_named(tmp_path: Path) -> None:
    source = make_hf(tmp_path / "hf", shards=2)
    raw = (source / SHARDS[1]).read_bytes()
    for garbled in (b"", b"\x00garbage", raw[: len(raw) // 2]):
        (source / SHARDS[1]).write_bytes(garbled)
        with pytest.raises(StoreError, match=rf"{SHARDS[1]} is not readable"):
            read_tensors(source)
    with pytest.raises(StoreError, match=r"none.safetensors is not readable"):
        read_file(source / "none.safetensors")
