"""A cluster of two machines, a CPU each, that is shared: by runs that take turns, by a store that both must reach."""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Result, command, environment
from nodes_fixtures import Nodes

from orchestrator.cluster.connect import prepare_environment

pytestmark = pytest.mark.timeout(500)
Slipway = Callable[..., Result]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    prepare_environment()
    with tempfile.TemporaryDirectory(prefix="slipway-nodes-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        found = Nodes(folder)
        try:
            found.add()
            yield found
        finally:
            found.end()


class Driven:
    """A run of its own name that needs the whole cluster."""

    def __init__(self, name: str, job: Path, store: Path, address: str, *sets: str) -> None:
        self.name, self.log = name, store.parent / f"{name}.log"
        alone = [f"name={name}", "train.workers={min: 2, max: 2}", *sets]
        args = command("run", job, "--store", store, "--until", "train", "--address", address)
        more = [word for one in alone for word in ("--set", one)]
        self.process = subprocess.Popen(
            [*args, *more],
            stdout=subprocess.DEVNULL,
            stderr=self.log.open("w"),
            env=environment(SLIPWAY_STATE_LINES="1"),
        )
        self._store = store

    def said(self) -> str:
        return self.log.read_text()

    def await_said(self, words: str, *, limit_s: float = 90) -> None:
        deadline = time.monotonic() + limit_s
        while words not in self.said():
            assert time.monotonic() < deadline, f"{self.name} never said {words!r}:\n{self.said()[-3000:]}"
            assert self.process.poll() is None, self.said()[-3000:]
            time.sleep(0.1)

    def events(self) -> list[dict[str, Any]]:
        (file,) = self._store.glob(f"runs/{self.name}-*/events.jsonl")
        return [json.loads(line) for line in file.read_text().splitlines()]

    def when(self, name: str) -> str:
        return next(str(event["time"]) for event in self.events() if event["event"] == name)

    def await_event(self, name: str, *, limit_s: float = 120) -> None:
        deadline = time.monotonic() + limit_s
        while True:
            if any(self._store.glob(f"runs/{self.name}-*/events.jsonl")) and name in {
                e["event"] for e in self.events()
            }:
                return
            assert time.monotonic() < deadline, self.said()[-3000:]
            assert self.process.poll() is None, self.said()[-3000:]
            time.sleep(0.1)


def kill_the_queue(nodes: Nodes) -> None:
    """The actor's process, by Ray's own word of where it is."""
    import psutil

    for process in psutil.process_iter(["cmdline"]):
        if (process.info["cmdline"] or [""])[0].startswith("ray::_Desk"):
            process.kill()


def test_the_doctor_looks_at_every_machine_and_between_them(nodes: Nodes, slipway: Slipway, tmp_path: Path) -> None:
    result = slipway("doctor", "--address", nodes.gcs, "--store", tmp_path / "store", "--json")
    document = result.document
    assert result.code == (0 if document["healthy"] else 1), result.stderr
    assert sorted(node["id"] for node in document["nodes"]) == sorted(nodes.ids)
    for node in document["nodes"]:
        assert (node["problem"], node["storage_problem"], node["cpus"], node["token_mode"]) == (None, None, 1.0, True)
        assert node["ray"].startswith("2.60")
        assert abs(node["clock_skew_s"]) < 1.0  # it is one clock
        assert min(node["write_bytes_per_s"], node["read_bytes_per_s"], node["disk_free_bytes"]) > 0
    network = document["network"]
    assert (network["problem"], network["backend"], network["machines"]) == (None, "gloo", 2)
    assert network["bytes_per_s"] > 1e6
    assert 0 < network["latency_s"] < 1.0
    alike = [
        check for check in document["checks"] if check["name"] in ("machines", "torch", "code", "clocks", "storage")
    ]
    assert [(check["name"], check["ok"]) for check in alike if not check["ok"]] == []
    assert list((tmp_path / "store").iterdir()) == []


def test_the_doctor_comes_through_a_dashboard(nodes: Nodes, slipway: Slipway, tmp_path: Path) -> None:
    result = slipway("doctor", "--address", nodes.dashboard, "--store", tmp_path)
    assert result.code in (0, 1), result.stderr
    assert "machines       2 machine(s) with 2 CPUs and 0 GPUs answer" in result.stdout
    assert "all-reduce by gloo over 2 machines" in result.stdout


@pytest.mark.slow  # two minutes
def test_runs_that_need_the_whole_cluster_take_turns(nodes: Nodes, job_file: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"

    def drive(name: str, *sets: str) -> Driven:
        return Driven(name, job_file, store, nodes.gcs, *sets)

    long = drive("long", "train.steps=100000")
    long.await_event("first-step")
    low = drive("low", "train.steps=6")
    low.await_said("waiting: 1st of 1, waits for 2 CPUs; 0 CPUs and 0 GPUs on 2 node(s) are free")
    dying = drive("dying", "cluster.priority=9")
    dying.await_said("waiting: 1st of 2")
    high = drive("high", "train.steps=6", "cluster.priority=5")
    high.await_said("waiting: 2nd of 3, waits for 2 CPUs; dying-")
    low.await_said("waiting: 3rd of 3, waits for 2 CPUs; high-")
    assert '"state": "waiting"' in low.said()
    assert '"place": 3' in low.said()
    dying.process.kill()  # its driver says nothing more
    kill_the_queue(nodes)  # and who waits says so again
    low.await_said("waiting: 2nd of 2, waits for 2 CPUs; high-")
    assert "failed" not in {event["event"] for event in long.events()}
    long.process.send_signal(signal.SIGTERM)
    assert long.process.wait(60) == 143, long.said()[-3000:]
    assert high.process.wait(120) == 0, high.said()[-3000:]
    assert low.process.wait(120) == 0, low.said()[-3000:]
    assert long.when("ended") < high.when("launched") < high.when("ended") < low.when("launched")
    assert [e["event"] for one in (high, low) for e in one.events()].count("failed") == 0


def _may_mount() -> bool:
    return subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not _may_mount(), reason="needs a mount namespace: run it as root")
def test_a_store_that_a_machine_does_not_reach_is_refused_before_anything_is_prepared(
    nodes: Nodes, job_file: Path, slipway: Slipway, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    store.mkdir()
    # Another disk under the same path, as where the network's was not mounted.
    apart = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(store)]
    number = nodes.add(before=apart)
    try:
        result = slipway("run", job_file, "--address", nodes.gcs, "--store", store, "--json")
    finally:
        nodes.kill(number)
    assert result.code == 6, result.stderr
    message = result.document["error"]["message"]
    assert f"the store {store} is not one folder: " in message
    assert f"(node {nodes.ids[number][:8]}) does not see what " in message
    assert list(store.iterdir()) == []
