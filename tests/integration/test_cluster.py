"""A cluster that is up: Ray's own head process, in token mode, as an operator starts it."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import psutil
import pytest
from harness import Result, environment, free_port

from orchestrator.cluster.connect import prepare_environment

Slipway = Callable[..., Result]


@dataclass
class Cluster:
    """Where it answers."""

    gcs: str
    dashboard: str
    pid: int


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    prepare_environment()
    gcs, dashboard = free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="slipway-head-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        args = [
            str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={gcs}",
            f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1",
            "--num-cpus=2", f"--dashboard-agent-listen-port={free_port()}",
            f"--temp-dir={folder}", "--object-store-memory=200000000",
        ]  # fmt: skip
        head = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment())
        found = Cluster(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", head.pid)
        try:
            _wait_for(found.dashboard + "/api/version", head)
            yield found
        finally:
            family = psutil.Process(head.pid).children(recursive=True)
            head.terminate()
            for process in psutil.wait_procs([psutil.Process(head.pid), *family], timeout=10)[1]:
                process.kill()
            head.wait(10)


def _wait_for(url: str, head: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and head.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=2)
        except urllib.error.HTTPError:  # it answers, and asks for the token
            return
        except OSError:
            time.sleep(0.3)
        else:
            return
    pytest.fail("the head did not start")


def test_run_with_an_address_leaves_the_service_there(
    cluster: Cluster, job_file: Path, slipway: Slipway, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store, port = tmp_path_factory.getbasetemp() / "cluster-store", free_port()
    args = ("run", job_file, "--address", cluster.gcs, "--store", store, "--json", "--set", f"serve.port={port}")
    result = slipway(*args)
    assert result.code == 0, result.stderr
    assert result.document["stages"] == dict.fromkeys(("prepare", "train", "export", "serve"), "done")
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as client:
        assert client.completions.create(model="tiny", prompt="the ", max_tokens=4).choices[0].text
    again = slipway(*args)  # the same command is an update of what runs there
    assert again.code == 0, again.stderr


def test_an_address_where_nothing_answers(job_file: Path, slipway: Slipway, tmp_path: Path) -> None:
    gone = f"127.0.0.1:{free_port()}"
    result = slipway("run", job_file, "--address", gone, "--store", tmp_path, "--json", timeout_s=90)
    assert result.code == 4
    assert f"no Ray cluster can be joined at {gone}" in result.stderr
    assert "Traceback" not in result.stderr


def _listening(cluster: Cluster) -> list[int]:
    """Every port that a process of the cluster listens on, as `ss` tells."""
    ours = {cluster.pid, *(child.pid for child in psutil.Process(cluster.pid).children(recursive=True))}
    lines = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout.splitlines()
    ports = set()
    for line in lines:
        owners = {int(pid) for pid in re.findall(r"pid=(\d+)", line)}
        if owners & ours:
            ports.add(int(line.split()[3].rpartition(":")[2]))
    return sorted(ports)


@pytest.mark.skipif(not Path("/usr/bin/ss").exists() and not Path("/bin/ss").exists(), reason="needs ss")
def test_no_port_does_anything_without_the_token(cluster: Cluster) -> None:
    """HTTP answers 401 or 403, but for read-only metrics and the dashboard's empty page; gRPC refuses."""
    ports = _listening(cluster)
    assert len(ports) >= 4
    answers = {port: _answer_without_token(port) for port in ports}
    assert set(answers.values()) <= {"refused", "page", "metrics"}, answers
    assert "refused" in answers.values(), answers


def _answer_without_token(port: int) -> str:
    """What a stranger gets: an HTTP answer, else what Ray's control service says to gRPC without a token."""
    for path in ("/metrics", "/api/jobs/", "/api/version", "/"):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=3) as answer:
                body = answer.read(4000).decode(errors="replace")
        except urllib.error.HTTPError as error:
            if error.code not in (401, 403, 404, 405):
                return f"{path} answered {error.code}"
        except (OSError, http.client.HTTPException):  # no HTTP
            return _grpc_without_token(port)
        else:
            if path == "/" and body.lower().startswith("<!doctype html"):
                return "page"  # the dashboard's own shell: a static file, which gets 401 for all that it asks for
            is_metrics = path == "/metrics" and ("# HELP" in body or not body.strip())
            return "metrics" if is_metrics else f"{path} answered: {body[:80]}"
    return "refused"


def _grpc_without_token(port: int) -> str:
    """Call Ray's control service with the token mode off: it must not answer with data."""
    code = (
        "import sys\n"
        "from ray._raylet import GcsClient\n"
        "try:\n"
        f"    nodes = GcsClient(address='127.0.0.1:{port}').get_all_node_info(timeout=3)\n"
        "    print('answered', len(nodes))\n"
        "except BaseException as error:\n"
        "    print('refused', type(error).__name__, str(error)[:80])\n"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False,
            env={**clean, "HOME": home, "RAY_AUTH_MODE": "disabled"},
        )  # fmt: skip
    return "refused" if "answered" not in done.stdout else f"grpc {done.stdout}"


@pytest.fixture
def second_node(cluster: Cluster) -> Iterator[None]:
    """One more node of two CPUs, beside the head."""
    args = [
        str(Path(sys.executable).with_name("ray")), "start", "--block", f"--address={cluster.gcs}",
        "--node-ip-address=127.0.0.1", "--num-cpus=2", f"--dashboard-agent-listen-port={free_port()}",
        "--object-store-memory=200000000",
    ]  # fmt: skip
    node = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment())
    try:
        yield
    finally:
        family = psutil.Process(node.pid).children(recursive=True)
        node.terminate()
        for process in psutil.wait_procs([psutil.Process(node.pid), *family], timeout=10)[1]:
            process.kill()
        node.wait(10)


def nodes_of_tasks(cluster: Cluster) -> dict[str, set[str]]:
    """Node -> the drivers whose tasks it has run, as Ray tells."""
    code = (
        "import json; from ray.util.state import list_tasks;"
        f"rows = list_tasks(address={cluster.dashboard!r}, limit=5000, detail=True, raise_on_missing_output=False);"
        "print(json.dumps([[r.node_id, r.job_id, r.name] for r in rows]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    found: dict[str, set[str]] = {}
    for node, job, name in json.loads(done.stdout.splitlines()[-1]):
        if name == "_unit" and node:
            found.setdefault(node, set()).add(job)
    return found


def test_preparation_is_spread_over_nodes_and_makes_the_same_bytes(
    cluster: Cluster, second_node: None, slipway: Slipway, tmp_path: Path
) -> None:
    rng = random.Random(9)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 8))) for _ in range(2000)]
    with (tmp_path / "text.jsonl").open("w") as file:
        for _ in range(9000):
            file.write(json.dumps({"text": " ".join(rng.choices(words, k=150))}) + "\n")
    job = tmp_path / "job.yaml"
    job.write_text(f"name: spread\ndata:\n  sources: [{{path: {tmp_path}/text.jsonl}}]\n")
    there = slipway("prepare", job, "--address", cluster.gcs, "--store", tmp_path / "there", "--json")
    assert there.code == 0, there.stderr
    assert len(nodes_of_tasks(cluster)) == 2
    here = slipway("prepare", job, "--store", tmp_path / "here", "--json")
    assert here.code == 0, here.stderr

    def digests(store: Path) -> dict[str, str]:
        folder = store / here.document["dataset"]
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    assert digests(tmp_path / "there") == digests(tmp_path / "here")
