"""What users get wrong: a clear error, the right exit code, nothing lost or half-written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Result, Runner, command, environment

from orchestrator.errors import DataError, JobError, StoreError
from orchestrator.store import lock

Slipway = Callable[..., Result]


def test_no_file_matches(runner: Runner, slipway: Slipway, job_file: Path, tmp_path: Path) -> None:
    missing = f"data.sources=[{{path: {tmp_path}/none/*.txt}}]"
    planned = slipway("plan", job_file, "--set", missing, "--json")
    assert planned.code == 0
    assert any("no file matches" in w for w in planned.document["warnings"])
    with pytest.raises(DataError, match="no file matches"):
        runner(tmp_path / "store", missing, until="prepare")
    assert not (tmp_path / "store").exists()


def test_bad_files_are_counted_and_named_or_refused(runner: Runner, corpus: Path, tmp_path: Path) -> None:
    source = tmp_path / "text"
    source.mkdir()
    (source / "good.txt").write_text((corpus / "doc-00.txt").read_text() * 20)
    (source / "empty.txt").touch()
    (source / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    sources = f"data.sources=[{{path: {source}}}]"
    outcome = runner(tmp_path / "store", sources, until="prepare")
    rejected = (tmp_path / "store" / (outcome.dataset or "") / "rejected.jsonl").read_text()
    assert [json.loads(line) for line in rejected.splitlines()] == [
        {"file": "empty.txt", "row": None, "reason": "empty"},
        {"file": "latin.txt", "row": None, "reason": "not UTF-8 at byte 3"},
    ]
    with pytest.raises(DataError, match=r"2 rows or files hold no document, over data.max_rejected 0: empty.txt"):
        runner(tmp_path / "other", sources, "data.max_rejected=0", until="prepare")
    assert not [p for p in (tmp_path / "other" / "datasets").iterdir() if not p.name.startswith(".")]


def test_one_document_fills_every_split(runner: Runner, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text((corpus / "doc-01.txt").read_text() * 30)
    outcome = runner(tmp_path / "store", f"data.sources=[{{path: {tmp_path}/one.txt}}]", until="prepare")
    manifest = (tmp_path / "store" / (outcome.dataset or "") / "manifest.json").read_text()
    import json

    splits = json.loads(manifest)["splits"]
    assert all(splits[name]["tokens"] > 1 for name in ("train", "validation", "test"))
    assert splits["validation"]["tokens"] < 0.15 * splits["train"]["tokens"]


def test_context_longer_than_the_data(runner: Runner, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("the ship sails at dawn\n" * 3)
    with pytest.raises(JobError, match=r"model\.context is 4096, but the training split has"):
        runner(
            tmp_path / "store",
            f"data.sources=[{{path: {tmp_path}/short.txt}}]",
            "model.context=4096",
            "train.batch_tokens=8192",
        )


def test_a_tokenizer_that_does_not_fit_the_model(runner: Runner, tmp_path: Path) -> None:
    outcome = runner(tmp_path, until="prepare")
    given = tmp_path / (outcome.dataset or "") / "tokenizer.json"
    with pytest.raises(JobError, match=r"model.vocab_size is 64, but the tokenizer has \d+ tokens: it does not fit"):
        runner(tmp_path / "other", f"data.tokenizer={{train: null, path: {given}}}", "model.vocab_size=64")


def test_a_dataset_that_is_being_written(runner: Runner, slipway: Slipway, job_file: Path, tmp_path: Path) -> None:
    planned = slipway("plan", job_file, "--store", tmp_path, "--json").document["stages"]["prepare"]["path"]
    identity = planned.rpartition("-")[2]
    with lock(tmp_path / "datasets" / f".{identity}.lock", holds="it"):
        result = slipway("prepare", job_file, "--store", tmp_path, "--json", timeout_s=60)
    assert result.code == 6
    assert f"is being written by process {os.getpid()}" in result.stderr
    assert runner(tmp_path, until="prepare").stages["prepare"] == "done"


def test_ctrl_c_while_preparing_leaves_nothing(job_file: Path, tmp_path: Path) -> None:
    much = "data.sources=[{path: '${python:stdlib}', include: '**/*.py', exclude: [site-packages/**, test/**]}]"
    args = command("prepare", job_file, "--store", tmp_path, "--json", "--set", much)
    with subprocess.Popen(
        args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("datasets/.work-*/read")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert not [p for p in (tmp_path / "datasets").iterdir() if not p.name.startswith(".")]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", place], check=False).returncode
    ):
        pytest.skip("mounting a small disk takes root")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_is_said_and_half_a_checkpoint_is_not_left(runner: Runner, small_disk: Path) -> None:
    big = ("model.width=128", "model.layers=4")
    with pytest.raises(StoreError, match="the disk is full"):
        runner(small_disk, *big, "train.checkpoint.every_steps=2", "train.retries.storage=0")
    assert not [p for p in small_disk.rglob("*") if ".tmp-" in p.name]
    assert not list(small_disk.glob("runs/*/checkpoints/*/COMMITTED"))
