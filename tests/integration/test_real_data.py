"""Preparation of real text, where `SLIPWAY_TEST_DATA` names a folder that holds some."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from harness import Runner
from tokenizers import Tokenizer

from orchestrator.data.dataset import open_dataset
from orchestrator.data.load.stream import TokenStream

DATA = os.environ.get("SLIPWAY_TEST_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="SLIPWAY_TEST_DATA is not set")


def unpack(name: str, into: Path) -> str:
    text = gzip.decompress((Path(DATA or "") / name).read_bytes())
    into.write_bytes(text)
    return text.decode()


def all_ids(folder: Path, split: str) -> list[int]:
    stream = TokenStream(open_dataset(folder).shard_paths(split))
    ids: list[int] = stream.rows(np.zeros(1, dtype=np.int64), len(stream))[0].tolist()
    return ids


def test_wikitext_comes_back_to_the_letter(runner: Runner, tmp_path: Path) -> None:
    """One file is one document: its end is cut off for validation and test, and nothing of it is lost."""
    text = unpack("wikitext-2/test.txt.gz", tmp_path / "wiki.txt")
    outcome = runner(
        tmp_path / "store",
        f"data.sources=[{{path: {tmp_path}/wiki.txt}}]",
        "data.tokenizer.vocab_size=2048",
        until="prepare",
    )
    folder = tmp_path / "store" / (outcome.dataset or "")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    back = "".join(tokenizer.decode(all_ids(folder, split)) for split in ("train", "validation", "test"))
    assert back == text


def test_mails_of_json_lines(runner: Runner, tmp_path: Path) -> None:
    rows = unpack("messy/enron1_emails.jsonl.gz", tmp_path / "mails.jsonl").splitlines()
    outcome = runner(
        tmp_path / "store",
        f"data.sources=[{{path: {tmp_path}/mails.jsonl, format: jsonl, text: text}}]",
        "data.tokenizer.vocab_size=1024",
        until="prepare",
    )
    report = json.loads((tmp_path / "store" / (outcome.dataset or "") / "report.json").read_text())
    assert report["documents"] + report["bad"]["count"] == len(rows)
    texts = [json.loads(row)["text"] for row in rows]
    assert report["text_bytes"] == sum(len(text.encode()) for text in texts if text.strip())
    assert report["splits"]["validation"]["documents"] > 100
