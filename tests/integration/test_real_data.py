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
from orchestrator.data.show import verify
from orchestrator.job_file import load_job
from orchestrator.run import prepare_only
from orchestrator.store import Store

ROOT = Path(__file__).parents[2]
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
        "data.privacy.action=off",
        until="prepare",
    )
    folder = tmp_path / "store" / (outcome.dataset or "")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    back = "".join(tokenizer.decode(all_ids(folder, split)) for split in ("train", "validation", "test"))
    assert back == text


def test_mails_of_json_lines(runner: Runner, tmp_path: Path) -> None:
    rows = unpack("messy/enron1_emails.jsonl.gz", tmp_path / "mails.jsonl").splitlines()
    made = prepare_only(
        runner.job(
            f"data.sources=[{{path: {tmp_path}/mails.jsonl, format: jsonl, text: text}}]",
            "data.tokenizer.vocab_size=1024",
        ),
        store=Store(tmp_path / "store"),
        session=runner.session,
    )
    report = json.loads(Path(made["report"]).read_text())
    assert report["documents_read"] + made["rejected"] == len(rows)
    texts = {" ".join(json.loads(row)["text"].split()) for row in rows}
    assert made["removed"]["exact_duplicates"] == report["documents_read"] - len(texts - {""})
    assert made["documents"] == report["documents_read"] - sum(made["removed"].values())
    assert made["personal_data"]["email"] > 2000
    assert report["splits"]["validation"]["documents"] > 100


JOBS = [
    # job, rows in the files (train, validation, test), rows left for training
    ("sst2", (6920, 872, 1821), None),
    ("wnut17", (3394, 1009, 1287), None),
    ("squad", (1013, 177, 0), 1013),
    ("sms-chat", (5574, 0, 0), None),
    ("wikitext", (629, 60, 62), None),
]


@pytest.mark.parametrize(("name", "rows", "train"), JOBS, ids=[name for name, *_ in JOBS])
def test_the_jobs_of_each_kind_read_every_row(
    runner: Runner, tmp_path: Path, name: str, rows: tuple[int, int, int], train: int | None
) -> None:
    made = prepare_only(load_job(ROOT / "jobs" / f"{name}.yaml"), store=Store(tmp_path), session=runner.session)
    report = json.loads(Path(made["report"]).read_text())
    read = [source["documents_read"] for source in report["sources"]]
    assert read == [count for count in rows if count]
    assert made["rejected"] == 0
    assert made["documents"] == sum(read) - sum(made["removed"].values())
    if train is not None:
        assert report["splits"]["train"]["documents"] == train
    verify(tmp_path / made["dataset"])


def test_a_test_sentence_does_not_stay_in_training(runner: Runner, tmp_path: Path) -> None:
    """Two sentences of SST-2's test set stand in its training set, and nine are there twice."""
    made = prepare_only(load_job(ROOT / "jobs" / "sst2.yaml"), store=Store(tmp_path), session=runner.session)
    splits = json.loads(Path(made["report"]).read_text())["splits"]
    assert {name: split["documents"] for name, split in splits.items()} == {
        "train": 6920 - 11,
        "validation": 872,
        "test": 1821,
    }
    assert made["removed"]["exact_duplicates"] == 11
