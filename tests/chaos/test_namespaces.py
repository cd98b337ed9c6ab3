"""Two hosts with addresses of their own train together, a third submits; one is cut off, and comes back."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import command, environment, steps
from network_fixtures import NEEDS, Network, can_make_namespaces, left

from orchestrator.cluster.connect import prepare_environment

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not can_make_namespaces(), reason=NEEDS),
]

JOB = """\
name: hosts
data:
  sources: [{{path: {text}}}]
  tokenizer: {{vocab_size: 320}}
model: {{layers: 2, width: 32, heads: 2, context: 32}}
train:
  steps: 240
  batch_tokens: 256
  precision: fp32
  zero: {{stage: 3}}
  workers: {{min: 2, max: 2, wait_s: 150}}
  checkpoint: {{every_steps: 20}}
"""


class Cluster:
    """A head, and a worker's machine, each on its host, as an operator starts them."""

    def __init__(self, network: Network, folder: str) -> None:
        self.network = network
        self._folder = folder
        self.dashboard = f"http://{network.addresses['head']}:8265"

    def start(self, host: str) -> None:
        own, head = self.network.addresses[host], self.network.addresses["head"]
        place = ("--head", "--port=6379", f"--dashboard-host={own}") if host == "head" else (f"--address={head}:6379",)
        ray = Path(sys.executable).with_name("ray")
        call = self.network.on(
            host, ray, "start", "--block", "--num-cpus=1", f"--node-ip-address={own}",
            "--object-store-memory=100000000", f"--temp-dir={self._folder}/{host}", *place,
        )  # fmt: skip
        subprocess.Popen(call, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def await_nodes(self, count: int) -> None:
        code = "from ray._raylet import GcsClient; import sys; nodes = GcsClient(address=sys.argv[1]).get_all_node_info"
        code += "(timeout=5); print(sum(node.state == 0 for node in nodes.values()))"
        call = self.network.on("head", sys.executable, "-c", code, f"{self.network.addresses['head']}:6379")

        def are_there() -> bool:
            done = subprocess.run(call, capture_output=True, text=True, env=environment(), check=False)
            return done.stdout.strip() == str(count)

        wait_until(are_there, 60, lambda: "the nodes did not start")


def wait_until(true: Callable[[], object], limit_s: float, said: Callable[[], str]) -> None:
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline, said()
        time.sleep(0.2)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    prepare_environment()
    with tempfile.TemporaryDirectory(prefix="slipway-hosts-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        network = Network("head", "worker", "laptop")
        try:
            found = Cluster(network, folder)
            found.start("head")
            found.await_nodes(1)
            found.start("worker")
            found.await_nodes(2)
            yield found
        finally:
            alive = network.end()
    assert (alive, left()) == ([], [])


class Submitted:
    """A job that the laptop has submitted, and what its run has left in the store."""

    def __init__(self, cluster: Cluster, job: Path, store: Path) -> None:
        verb = command("submit", job, "--store", store, "--until", "train", "--json", "--address", cluster.dashboard)
        self.store = store
        self._log = store.parent / "stderr"
        self.process = subprocess.Popen(
            cluster.network.on("laptop", *verb), stdout=subprocess.PIPE, stderr=self._log.open("a"), text=True,
            env=environment(),
        )  # fmt: skip

    @property
    def run(self) -> Path:
        (found,) = self.store.glob("runs/*")
        return found

    def events(self, name: str) -> list[dict[str, Any]]:
        found = list(self.store.glob("runs/*/events.jsonl"))
        lines = map(json.loads, found[0].read_text().splitlines()) if found else ()
        return [line for line in lines if line["event"] == name]

    def await_event(self, name: str, count: int, limit_s: float) -> dict[str, Any]:
        wait_until(lambda: len(self.events(name)) >= count or self.process.poll() is not None, limit_s, self.said)
        assert len(self.events(name)) >= count, self.said()
        return self.events(name)[count - 1]

    def said(self) -> str:
        return self._log.read_text()[-4000:]


def test_a_run_across_hosts_outlives_one_that_is_cut_off(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n".join(f"{i} ropes, {i * i} sails and a gull" for i in range(2_000)))
    job = tmp_path / "hosts.yaml"
    job.write_text(JOB.format(text=tmp_path / "text.txt"))
    submitted = Submitted(cluster, job, tmp_path / "store")
    submitted.await_event("checkpoint", 2, limit_s=200)
    ranks = [json.loads(note.read_text())["pid"] for note in sorted(submitted.run.glob("workers/rank-*.json"))]
    hosts = [set(cluster.network.processes(host)) for host in ("head", "worker")]
    assert len(ranks) == 2
    assert all(len(host & set(ranks)) == 1 for host in hosts)  # one rank each
    cluster.network.cut_off("worker")
    failed = submitted.await_event("failed", 1, limit_s=90)
    assert (failed["class"], failed["action"]) == ("node", "retry"), failed
    cluster.network.restore("worker")
    submitted.await_event("first-step", 2, limit_s=120)
    out, _ = submitted.process.communicate(timeout=200)
    assert submitted.process.returncode == 0, submitted.said()
    assert json.loads(out)
    assert steps(submitted.store, f"runs/{submitted.run.name}") == list(range(1, 241))
    assert submitted.events("resumed")[0]["step"] == failed["step"]
