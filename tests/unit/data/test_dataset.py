"""A prepared dataset: whole and as its manifest says, or refused by the name of what differs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from orchestrator.data import dataset as dataset_module
from orchestrator.data.dataset import FORMAT, open_dataset
from orchestrator.data.shards import open_shard, write_shard
from orchestrator.errors import DataError
from orchestrator.store import MARKER, commit, writing


@pytest.fixture
def path(tmp_path: Path) -> Path:
    final = tmp_path / "tiny-0123"
    with writing(final) as tmp:
        (tmp / "shards").mkdir()
        shards = []
        for i in range(2):
            tokens, documents = write_shard(tmp / f"shards/train-{i}.arrow", [np.arange(50, dtype=np.uint16)])
            shards.append({"path": f"shards/train-{i}.arrow", "tokens": tokens, "documents": documents})
        splits = {"train": {"tokens": 100, "documents": 2, "shards": shards}}
        facts = {"format": FORMAT, "kind": "text", "counts": {}, "hash": "0123", "vocab_size": 300, "splits": splits}
        commit(tmp, final, facts)
    return final


def test_it_says_what_a_loader_needs(path: Path) -> None:
    found = open_dataset(path)
    assert (found.hash, found.vocab_size, found.tokens("train"), found.tokens("test")) == ("0123", 300, 100, 0)
    assert found.tokenizer_path == path / "tokenizer.json"
    assert found.shard_paths("test") == []
    assert sum(len(open_shard(shard).tokens) for shard in found.shard_paths("train")) == 100


def alter(shard: Path) -> None:
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 1
    shard.write_bytes(raw)


def test_an_altered_shard_is_named(path: Path) -> None:
    alter(path / "shards" / "train-1.arrow")
    with pytest.raises(DataError, match=r"shards/train-1\.arrow was altered: its SHA-256 is") as caught:
        open_dataset(path)
    assert caught.value.exit_code == 3


def test_a_worker_need_not_hash_again_but_sees_a_truncated_shard(path: Path) -> None:
    alter(path / "shards" / "train-1.arrow")
    open_dataset(path, verify=False)
    with (path / "shards" / "train-1.arrow").open("r+b") as file:
        file.truncate(64)
    with pytest.raises(DataError, match=r"train-1\.arrow has 64 bytes, the manifest says \d+ bytes"):
        open_dataset(path, verify=False)


def test_a_large_dataset_is_checked_by_size_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alter(path / "shards" / "train-1.arrow")
    monkeypatch.setattr(dataset_module, "_DEEP_LIMIT_BYTES", 100)
    open_dataset(path)


def test_one_that_is_not_complete_is_refused(path: Path) -> None:
    (path / MARKER).unlink()
    with pytest.raises(DataError, match="is not complete: it has no COMMITTED marker"):
        open_dataset(path)


def test_a_committed_folder_of_another_kind_is_no_dataset(tmp_path: Path) -> None:
    with writing(tmp_path / "other") as tmp:
        commit(tmp, tmp_path / "other", {"step": 3})
    with pytest.raises(DataError, match="is not a dataset of this version"):
        open_dataset(tmp_path / "other")
