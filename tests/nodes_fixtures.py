"""Machines of a Ray cluster, all on this one: raylets of one CPU each."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness import environment, free_port


class Nodes:
    """A head, and more nodes, of one CPU each, as an operator starts them."""

    def __init__(self, folder: str) -> None:
        port, self.dashboard = free_port(), f"http://127.0.0.1:{free_port()}"
        self.gcs = f"127.0.0.1:{port}"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.ids: list[str] = []
        at = f"--dashboard-port={self.dashboard.rpartition(':')[2]}"
        self.folder = folder
        self._start("--head", f"--port={port}", at, "--dashboard-host=127.0.0.1")

    def add(self, *, before: Sequence[str] = ()) -> int:
        """Start another node; its number, the head's being 0. `before`: a command that runs the one given to it."""
        self._start(f"--address={self.gcs}", before=before)
        return len(self.ids) - 1

    def kill(self, number: int) -> None:
        """As a machine that loses its power: the raylet, and all that it has started."""
        for process in _family(self.processes[number].pid):
            process.kill()

    def drain(self, number: int) -> None:
        """The notice of a cloud that takes a machine back in a minute."""
        from ray.core.generated import autoscaler_pb2

        preemption = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        in_a_minute_ms = int((time.time() + 60) * 1000)
        assert self._client().drain_node(self.ids[number], preemption, "taken back", in_a_minute_ms)[0]

    def alive(self) -> set[str]:
        """The nodes that Ray takes for alive."""
        found = self._client().get_all_node_info(timeout=5)
        return {node_id.hex() for node_id, node in found.items() if node.state == 0}

    def end(self) -> None:
        for one in self.processes:
            for process in _family(one.pid):
                process.kill()
            one.wait(10)

    def _client(self) -> Any:
        from ray._raylet import GcsClient

        return GcsClient(address=self.gcs)

    def _start(self, *args: str, before: Sequence[str] = ()) -> None:
        call = [
            *before, str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=1",
            "--node-ip-address=127.0.0.1", f"--dashboard-agent-listen-port={free_port()}",
            "--object-store-memory=100000000", f"--temp-dir={self.folder}/{len(self.ids)}", *args,
        ]  # fmt: skip
        self.processes.append(
            subprocess.Popen(call, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            host, _, port = self.gcs.partition(":")
            with socket.socket() as probe:
                answers = probe.connect_ex((host, int(port))) == 0
            if answers and (new := self.alive() - set(self.ids)):
                self.ids.append(new.pop())
                return
            time.sleep(0.2)
        pytest.fail("the node did not start")


def _family(pid: int) -> list[psutil.Process]:
    try:
        own = psutil.Process(pid)
        return [process for process in (own, *own.children(recursive=True)) if process.is_running()]
    except psutil.NoSuchProcess:
        return []
