"""Sources and datasets on S3: a real endpoint on this machine."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
from harness import Result, environment
from weights_fixtures import make_run

from orchestrator.checkpoint.offsite import bring_back, copy_checkpoint
from orchestrator.checkpoint.reader import newest_checkpoint
from orchestrator.checkpoint.writer import Retention
from orchestrator.data.sources.remote import open_filesystem
from orchestrator.errors import StorageError
from orchestrator.object_store import filesystem_of

Slipway = Callable[..., Result]
JOB = """\
name: remote
data:
  sources:
    - {{path: "{path}"}}
  tokenizer: {{vocab_size: 300}}
  split: {{validation: 0.1}}
"""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[dict[str, str]]:
    """moto's server; the environment in which it is reached."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    args = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    reached = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "not-to-be-seen",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {name: os.environ.get(name) for name in reached}
    os.environ.update(reached)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.2)
        yield reached
    finally:
        server.terminate()
        server.wait(20)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def documents() -> list[str]:
    rng = random.Random(8)
    return [" ".join("".join(rng.choices("abcdefghij", k=6)) for _ in range(50)) for _ in range(200)]


@pytest.fixture(scope="module")
def bucket(endpoint: dict[str, str]) -> str:
    """A bucket with JSON lines in two folders, one packed."""
    system, _ = open_filesystem("s3://corpus/")
    rows = [json.dumps({"text": text}).encode() + b"\n" for text in documents()]
    make_bucket("corpus")
    for name, raw in (("a/one.jsonl", b"".join(rows[:120])), ("b/two.jsonl.gz", gzip.compress(b"".join(rows[120:])))):
        with system.open_output_stream(f"corpus/{name}", compression=None) as sink:
            sink.write(raw)
    return "s3://corpus"


def make_bucket(name: str) -> None:
    boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"]).create_bucket(Bucket=name)


def upload(folder: Path, to: str) -> None:
    system, root = open_filesystem(to)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with system.open_output_stream(f"{root}/{path.relative_to(folder)}", compression=None) as sink:
            sink.write(path.read_bytes())


@pytest.mark.parametrize("glob", ["", "/**/*.jsonl*"])
def test_a_bucket_is_read_as_a_folder_is(
    glob: str, bucket: str, endpoint: dict[str, str], slipway: Slipway, tmp_path: Path
) -> None:
    (tmp_path / "job.yaml").write_text(JOB.format(path=bucket + glob))
    made = slipway("prepare", tmp_path / "job.yaml", "--store", tmp_path / "store", "--json")
    assert made.code == 0, made.stderr
    assert made.document["documents"] == 200
    folder = tmp_path / "store" / made.document["dataset"]
    sources = json.loads((folder / "sources.json").read_text())["files"]
    assert [row["path"] for row in sources] == ["a/one.jsonl", "b/two.jsonl.gz"]
    assert (
        slipway("prepare", tmp_path / "job.yaml", "--store", tmp_path / "store", "--json").document["state"] == "reused"
    )
    told = "".join(p.read_text(errors="ignore") for p in (tmp_path / "store").rglob("*") if p.is_file())
    assert endpoint["AWS_SECRET_ACCESS_KEY"] not in told + made.stderr + made.stdout


def test_a_plan_does_not_ask_the_network(slipway: Slipway, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB.format(path="s3://nowhere/x"))
    planned = slipway("plan", tmp_path / "job.yaml", "--json", AWS_ENDPOINT_URL="http://127.0.0.1:9")
    assert planned.document["stages"]["prepare"]["status"] == "unknown"


def test_a_store_that_does_not_answer_is_said(slipway: Slipway, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB.format(path="s3://nowhere/x"))
    env = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    made = slipway("prepare", tmp_path / "job.yaml", "--store", tmp_path / "store", "--json", **env)
    assert made.code == 3
    assert "s3://nowhere/x cannot be read" in made.stderr
    assert "Traceback" not in made.stderr


def test_a_dataset_on_s3_is_trained_on_through_a_cache(
    bucket: str, endpoint: dict[str, str], slipway: Slipway, tmp_path: Path
) -> None:
    (tmp_path / "job.yaml").write_text(JOB.format(path=bucket))
    made = slipway("prepare", tmp_path / "job.yaml", "--store", tmp_path / "here", "--json").document
    make_bucket("corpus-prepared")
    upload(tmp_path / "here" / made["dataset"], "s3://corpus-prepared/remote")
    job = tmp_path / "mixed.yaml"
    job.write_text(
        """\
name: mixed
data: {datasets: [{dataset: "s3://corpus-prepared/remote"}]}
model: {layers: 1, width: 32, heads: 2, context: 32}
train: {steps: 3, batch_tokens: 128, precision: fp32, workers: {min: 1, max: 2}}
"""
    )
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    trained = slipway("train", job, "--store", tmp_path / "there", "--json", **cache)
    assert trained.code == 0, trained.stderr
    assert trained.document["steps"] == 3
    again = slipway("data", "order", job, "--steps", "0:2", "--store", tmp_path / "there", "--json", **cache)
    assert again.code == 0, again.stderr


TRAINED = """\
name: copied
data:
  sources: [{{path: {text}}}]
  tokenizer: {{vocab_size: 300}}
model: {{layers: 1, width: 32, heads: 2, context: 16}}
train:
  steps: {steps}
  batch_tokens: 128
  precision: fp32
  zero: {{stage: 0}}
  checkpoint: {{every_steps: 4, keep_last: 1, keep_every_steps: 8, copy_to: "s3://runs/team"}}
track: {{wandb: {{mode: disabled}}}}
"""


def worker(run: Path) -> subprocess.CompletedProcess[str]:
    args = [sys.executable, "-m", "orchestrator.train.worker", "--run", str(run)]
    return subprocess.run(args, capture_output=True, text=True, timeout=200, env=environment(), check=False)


def in_bucket(prefix: str) -> set[str]:
    found = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"]).list_objects_v2(
        Bucket="runs", Prefix=prefix
    )
    return {row["Key"].removeprefix(prefix) for row in found.get("Contents", [])}


def test_a_machine_with_an_empty_disk_goes_on_from_the_copies(
    endpoint: dict[str, str], slipway: Slipway, tmp_path: Path
) -> None:
    make_bucket("runs")
    (tmp_path / "text.txt").write_text("\n".join(documents()))
    job = tmp_path / "job.yaml"
    job.write_text(TRAINED.format(text=tmp_path / "text.txt", steps=20))
    made = slipway("prepare", job, "--store", tmp_path / "store")
    assert made.code == 0, made.stderr
    (run,) = (tmp_path / "store" / "runs").iterdir()
    untouched = tmp_path / "untouched"
    shutil.copytree(run, untouched)
    done = worker(run)
    assert done.returncode == 0, done.stderr
    names = in_bucket(f"team/{run.name}/")
    steps = {name.split("/")[1] for name in names if name.startswith("checkpoints/") and name.endswith("/COMMITTED")}
    assert {"step-00000008", "step-00000016", "step-00000020"} >= steps >= {"step-00000020"}
    assert {"metrics.jsonl", "events.jsonl"} < names
    lines = (run / "metrics.jsonl").read_text()

    shutil.rmtree(run)
    shutil.copytree(untouched, run)
    again = worker(run)
    assert again.returncode == 0, again.stderr
    assert f"took back s3://runs/team/{run.name}/checkpoints/step-00000020" in again.stdout + again.stderr
    assert (run / "metrics.jsonl").read_text() == lines
    told = "".join(p.read_text(errors="ignore") for p in run.rglob("*") if p.is_file())
    assert endpoint["AWS_SECRET_ACCESS_KEY"] not in told + done.stdout + done.stderr


def test_a_copy_that_was_altered_is_passed_over_and_a_store_that_is_gone_ends_no_training(
    endpoint: dict[str, str], tmp_path: Path
) -> None:
    run, say = make_run(tmp_path, steps=(20, 40)), list[str]()
    (run / "metrics.jsonl").write_text("{}\n")
    boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"]).create_bucket(Bucket="altered")
    for folder in sorted((run / "checkpoints").iterdir()):
        copy_checkpoint(run, folder, "s3://altered", retention=Retention(5), best_step=None)
    system, _ = filesystem_of("s3://altered")
    with system.open_output_stream(f"altered/{run.name}/checkpoints/step-00000040/model.safetensors") as sink:
        sink.write(b"other bytes")
    shutil.rmtree(run)
    assert bring_back(run, "s3://altered/", say=say.append) == 20
    assert "passing over s3://altered" in say[0]
    assert "model.safetensors is not what its manifest says" in say[0]
    newest = newest_checkpoint(run, say=say.append)
    assert newest is not None
    assert newest.step == 20
    assert bring_back(run, "s3://altered", say=say.append) is None  # the other is still no good
    with pytest.raises(StorageError, match=r"s3://nobodys/.* does not take or give copies of checkpoints"):
        copy_checkpoint(run, newest.path, "s3://nobodys", retention=Retention(1), best_step=None)
