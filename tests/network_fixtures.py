"""Hosts of a network, all on this machine: network namespaces with addresses of their own, joined by a bridge."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from pathlib import Path

import psutil

NEEDS = "needs root, and `ip` (iproute2) that may make network namespaces"
_PREFIX = "slipway-test"


def can_make_namespaces() -> bool:
    """Whether this process may; makes one and takes it away."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"{_PREFIX}-probe-{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return False
    subprocess.run(["ip", "netns", "del", name], check=True)
    return True


class Network:
    """Hosts with the addresses 10.93.0.1, .2, ...; nothing of it is seen by this machine's own network."""

    def __init__(self, *hosts: str) -> None:
        self._switch = _name("switch")
        self.addresses = {host: f"10.93.0.{number}" for number, host in enumerate(hosts, start=1)}
        try:
            _ip("netns", "add", self._switch)
            _ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
            _ip("-n", self._switch, "link", "set", "bridge", "up")
            for host, address in self.addresses.items():
                self._join(host, address)
        except BaseException:
            self.end()
            raise

    def _join(self, host: str, address: str) -> None:
        name = _name(host)
        _ip("netns", "add", name)
        _ip("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", host, "netns", self._switch)
        _ip("-n", self._switch, "link", "set", host, "master", "bridge", "up")
        _ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            _ip("-n", name, "link", "set", link, "up")

    def on(self, host: str, *command: object) -> list[str]:
        """The command, as it is started on a host."""
        return ["ip", "netns", "exec", _name(host), *map(str, command)]

    def cut_off(self, host: str) -> None:
        """As a cable that is pulled: packets are lost, and no connection is told."""
        _ip("-n", self._switch, "link", "set", host, "down")

    def restore(self, host: str) -> None:
        """Plug it in again."""
        _ip("-n", self._switch, "link", "set", host, "up")

    def processes(self, host: str) -> list[int]:
        """What runs on a host."""
        done = subprocess.run(["ip", "netns", "pids", _name(host)], capture_output=True, text=True, check=False)
        return [int(pid) for pid in done.stdout.split()]

    def end(self) -> list[int]:
        """Every process of every host, then the hosts; returns the processes that would not end."""
        ours = [pid for host in self.addresses for pid in self.processes(host)]
        for pid in ours:
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(pid).kill()
        deadline = time.monotonic() + 10
        while (
            alive := [pid for host in self.addresses for pid in self.processes(host)]
        ) and time.monotonic() < deadline:
            time.sleep(0.05)
        for name in (*map(_name, self.addresses), self._switch):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        return alive


def left() -> list[str]:
    """Namespaces of this process's networks that are still there."""
    folder = Path("/run/netns")
    return sorted(p.name for p in folder.glob(f"{_PREFIX}-*-{os.getpid()}")) if folder.is_dir() else []


def _name(host: str) -> str:
    return f"{_PREFIX}-{host}-{os.getpid()}"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
