"""Jobs on a cluster in token mode: handed over, followed, left, found again, stopped, run again, served from."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import psutil
import pytest
from harness import Result, command, environment, free_port
from nodes_fixtures import Nodes

from orchestrator.cluster.connect import prepare_environment
from orchestrator.cluster.jobs import rows
from orchestrator.cluster.jobs.client import JobsClient
from orchestrator.cluster.jobs.submit import STATE_LINES

Slipway = Callable[..., Result]
pytestmark = pytest.mark.timeout(500)
LONG = ("--set", "train.steps=100000", "--until", "train")
MODULE = """\
import os
from pathlib import Path

import tinyextra
import torch
from torch import nn

import orchestrator


class Net(nn.Module):
    def __init__(self, told: str) -> None:
        super().__init__()
        self.out = nn.Linear(2, 1)
        Path(told).write_text(f"{tinyextra.WORD} {orchestrator.__file__}")

    def forward(self, columns):
        predictions = self.out(torch.stack([columns["a"], columns["b"]], dim=-1)).squeeze(-1)
        found = {"predictions": predictions}
        return {**found, "loss": ((predictions - columns["y"]) ** 2).mean()} if "y" in columns else found
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    """Two nodes of one CPU each."""
    prepare_environment()
    with tempfile.TemporaryDirectory(prefix="slipway-jobs-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        nodes = Nodes(folder)
        try:
            nodes.add()
            yield nodes
        finally:
            nodes.end()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of these tests."""
    return tmp_path_factory.mktemp("jobs-store")


@pytest.fixture
def jobs(cluster: Nodes, slipway: Slipway) -> Callable[..., Result]:
    """`slipway jobs VERB ... --address URL --json`."""
    return lambda *words: slipway("jobs", *words, "--address", cluster.dashboard, "--json")


def wait_for_step(cluster: Nodes, id: str, step: int) -> None:
    client, deadline = JobsClient(cluster.dashboard), time.monotonic() + 180
    while time.monotonic() < deadline:
        job = client.submission(id)
        shown = rows.account_of(job, client.log(job, lines=STATE_LINES))
        if (shown["step"] or 0) >= step:
            return
        assert not job.is_over, shown
        time.sleep(0.5)
    raise AssertionError(shown)


def test_a_job_is_followed_to_its_end_and_told_of_later(
    cluster: Nodes, jobs: Callable[..., Result], job_file: Path, slipway: Slipway, shared: Path
) -> None:
    price = ("--set", "cluster.cpu_hour_price=1000", "--set", "train.log_every_steps=10")
    done = slipway(
        "submit", job_file, "--address", cluster.dashboard, "--store", shared, "--until", "export", *price, "--json"
    )
    assert done.code == 0, done.stderr
    assert done.document.keys() == {"job", "run", "state"}
    assert done.document["state"] == "succeeded"
    assert (shared / done.document["run"] / "export").is_dir()
    assert "step 40/40" in done.stderr
    assert "slipway-state" not in done.stderr
    (row,) = jobs("list").document["jobs"]
    assert (row["job"], row["run"], row["name"]) == (done.document["job"], done.document["run"], "tiny")
    assert (row["step"], row["steps"], row["stage"]) == (40, 40, "export")
    assert jobs("show", "tiny").document["outcome"]["steps"] == 40
    assert min(row["loss"], row["tokens_per_s"], row["goodput"], row["cost"]) > 0
    assert "@" in row["user"]
    assert row["submitted_at"] < row["ended_at"]
    assert jobs("logs", "tiny").document["log"].count("step 40/40") == 1
    assert "tiny" in slipway("jobs", "list", "--address", cluster.dashboard).stdout
    audited = slipway("audit", "show", "--json").document["events"]
    assert row["job"] in [event["job"] for event in audited if event["event"] == "job-submitted"]


def test_a_failed_job_says_who_where_and_why(
    cluster: Nodes, jobs: Callable[..., Result], job_file: Path, slipway: Slipway, shared: Path, tmp_path: Path
) -> None:
    nothing = ("--set", f"data.sources=[{{path: {tmp_path}/none}}]", "--set", "name=nothing")
    done = slipway("submit", job_file, "--address", cluster.dashboard, "--store", shared, *nothing, "--json")
    assert (done.code, done.document["state"]) == (3, "failed")
    death = jobs("show", "nothing").document["death"]
    assert (death["who"], death["where"] is None) == ("the driver", False)
    assert death["why"] == "ended with exit code 3: its data"
    assert "no file matches" in death["last_words"][0]


def test_one_that_never_fits_is_refused_with_the_numbers_detached_too(
    cluster: Nodes, job_file: Path, slipway: Slipway, shared: Path
) -> None:
    large = ("--set", "train.workers={min: 640, max: 640}", "--set", "train.batch_tokens=81920", "--set", "name=large")
    words = ("submit", job_file, "--address", cluster.dashboard, "--store", shared, *large, "--detach", "--json")
    done = slipway(*words)
    assert (done.code, done.document["state"]) == (4, "failed")
    assert "640" in done.stderr


def test_detached_attached_stopped_and_run_again(
    cluster: Nodes, jobs: Callable[..., Result], job_file: Path, slipway: Slipway, shared: Path
) -> None:
    words = ("submit", job_file, "--address", cluster.dashboard, "--store", shared, *LONG, "--json")
    first = slipway(*words, "--detach").document
    again = slipway(*words, "--detach").document
    assert again["job"] == first["job"]
    wait_for_step(cluster, first["job"], 8)

    with subprocess.Popen(
        command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as watching:
        assert watching.stderr is not None
        for line in watching.stderr:
            if "step " in line:
                break
        watching.send_signal(signal.SIGINT)
        said, _ = watching.communicate(timeout=60)
    assert watching.returncode == 0
    left = json.loads(said)
    assert (left["job"], left["state"]) == (first["job"], "training")

    stopped = jobs("stop", left["run"]).document
    assert stopped["state"] == "stopped"
    assert "saved up to step" in stopped["said"][0]
    saved = sorted((shared / left["run"] / "checkpoints").glob("step-*"))[-1]
    assert (saved / "COMMITTED").exists()

    retried = jobs("retry", first["job"]).document
    assert retried["job"] not in (first["job"], None)
    wait_for_step(cluster, retried["job"], 1 + int(saved.name.removeprefix("step-")))
    assert "continuing" in jobs("logs", retried["job"]).document["log"]

    driver = next(
        process
        for process in psutil.process_iter(["cmdline"])
        if "orchestrator.cli" in (words := process.info["cmdline"] or []) and str(shared) in words and "auto" in words
    )
    driver.kill()
    followed = slipway("jobs", "logs", retried["job"], "-f", "--address", cluster.dashboard, "--json")
    assert (followed.code, followed.document["state"]) == (137, "failed")
    death = jobs("show", retried["job"]).document["death"]
    assert death["why"] == "killed by SIGKILL"
    assert "killed from outside" in death["last_words"][0]


def test_a_package_is_there_for_the_job_that_asks_for_it_alone(
    cluster: Nodes, jobs: Callable[..., Result], slipway: Slipway, shared: Path, tmp_path: Path
) -> None:
    """The network of a module that lies here needs a package which the cluster lacks."""
    wheel = tmp_path / "tinyextra-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("tinyextra.py", "WORD = 'here'\n")
        file.writestr("tinyextra-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tinyextra\nVersion: 1.0\n")
        file.writestr("tinyextra-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr("tinyextra-1.0.dist-info/RECORD", "")
    (tmp_path / "ownnet.py").write_text(MODULE)
    rows = "".join(json.dumps({"a": i / 9, "b": 1.0, "y": i / 3}) + "\n" for i in range(64))
    (tmp_path / "rows.jsonl").write_text(rows)
    job = tmp_path / "own.yaml"
    job.write_text(
        f"""\
name: own
data:
  kind: columns
  sources: [{{path: rows.jsonl, format: jsonl}}]
  columns: {{a: float32, b: float32, y: float32}}
  split: {{validation: 0.1, test: 0.1}}
  privacy: {{action: "off"}}
model: {{kind: custom, class: "ownnet:Net", context: 2, settings: {{told: {tmp_path}/told}}}}
train: {{steps: 2, batch_tokens: 8, precision: fp32, workers: {{min: 1, max: 1}}}}
track: {{wandb: {{mode: disabled}}}}
"""
    )
    words = ("submit", job, "--address", cluster.dashboard, "--store", shared, "--until", "train", "--json")
    having = slipway(*words, "--requirement", wheel, "--dev", cwd=tmp_path)
    assert having.code == 0, having.stderr
    word, place = (tmp_path / "told").read_text().split()
    assert word == "here"
    assert "runtime_resources" in place  # the working tree that came along, not what is installed
    without = slipway(*words, "--set", "train.seed=5", cwd=tmp_path)
    assert without.code == 2
    assert "No module named 'tinyextra'" in without.stderr
    assert [(row["name"], row["state"]) for row in jobs("list").document["jobs"] if row["name"] == "own"] == [
        ("own", "succeeded"),
        ("own", "failed"),
    ]


def test_a_variable_that_the_cluster_lacks_is_missed_at_once(
    cluster: Nodes, job_file: Path, slipway: Slipway, shared: Path
) -> None:
    words = ("submit", job_file, "--address", cluster.dashboard, "--store", shared, "--set", "name=needy", "--json")
    assert "SLIPWAY_NO_SUCH" in slipway(*words, "--env", "SLIPWAY_NO_SUCH").stderr
    refused = slipway(*words, "--env", "SECRET=planted-value")
    assert refused.code == 2
    assert "planted-value" not in refused.stdout + refused.stderr


def test_a_service_lives_on_and_is_ended_from_elsewhere(
    cluster: Nodes, job_file: Path, slipway: Slipway, shared: Path
) -> None:
    port = free_port()
    price = ("--set", "cluster.cpu_hour_price=1000", "--set", f"serve.port={port}")
    done = slipway("submit", job_file, "--address", cluster.dashboard, "--store", shared, *price, "--json")
    assert (done.code, done.document["state"]) == (0, "succeeded"), done.stderr
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as client:
        assert client.completions.create(model="tiny", prompt="the ", max_tokens=4).choices[0].text
    at = ("--address", cluster.dashboard, "--json")
    (service,) = slipway("serve", "--status", *at).document["services"]
    assert (service["port"], service["model"], service["answers"]) == (port, "tiny", True)
    assert [ended["port"] for ended in slipway("serve", "--stop", *at).document["services"]] == [port]
    assert slipway("serve", "--status", *at).document == {"services": []}
    assert slipway("serve", "--stop", *at).code == 7


@pytest.mark.parametrize(
    ("mode", "status", "verb"), [("disabled", "401", "submit"), ("token", "403", "submit"), ("token", "403", "list")]
)
def test_a_cluster_asks_for_its_token(
    cluster: Nodes, job_file: Path, slipway: Slipway, tmp_path: Path, mode: str, status: str, verb: str
) -> None:
    (tmp_path / "token").write_text("0" * 64)
    (tmp_path / "token").chmod(0o600)
    stranger = {"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    words = ("submit", job_file, "--store", tmp_path) if verb == "submit" else ("jobs", verb)
    done = slipway(*words, "--address", cluster.dashboard, "--json", **stranger)
    assert done.code == 4
    assert status in done.document["error"]["message"]
    assert "Traceback" not in done.stderr


def test_nothing_of_the_token_is_in_what_the_cluster_tells(cluster: Nodes) -> None:
    token = (Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")).read_text().strip()
    told = JobsClient(cluster.dashboard).request("GET", "/api/jobs/").text
    assert "slipway-tiny-" in told
    assert token not in told
