"""Whether every machine of a cluster reaches the store: what one writes, the others must read.

A store that only looks the same, a path that is another folder on each machine, is found out before anything is lost in
it. A cluster of one machine is not asked.
"""

from __future__ import annotations

import shutil
import socket
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.cluster.view import Machine
from orchestrator.errors import StoreError

_ANSWER_S = 60.0
"""A machine may have to start a process first."""
_SEEN_WITHIN_S = 3.0
"""What is written on one machine shows on another of the same network disk within so long."""
_FIX = "give --store a folder that all nodes mount under the same path, such as one on NFS (docs/cluster.md)"


@dataclass(frozen=True)
class _Answer:
    """What a machine says."""

    host: str
    problem: str | None


class StorageCheck:
    """Asks each machine once."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._reached: set[str] = set()

    def require(self, machines: Iterable[Machine]) -> None:
        """Refuse a store that one of the machines does not reach; those that have answered before are not asked again.

        Raises:
            StoreError: which machine, which path, and why.
        """
        import ray

        here = ray.get_runtime_context().get_node_id()
        new = [m.id for m in machines if m.state == "ready" and m.id != here and m.id not in self._reached]
        if not new:
            return
        folder = self._store / f".reach-{uuid.uuid4().hex[:12]}"
        own = socket.gethostname()
        try:
            _write(folder / own)
        except OSError as error:
            raise StoreError(f"{own} cannot write to the store {self._store}: {error.strerror}", fix=_FIX) from None
        try:
            answers = _ask(folder, new, wrote=own)
            for node, answer in answers.items():
                problem = answer.problem or _unseen(folder / node, by=answer.host, on=own)
                if problem is not None:
                    raise StoreError(f"the store {self._store} is not one folder: {problem}", fix=_FIX)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self._reached |= set(new)


def look(folder: str, node: str, wrote: str) -> _Answer:
    """On a machine: whether it reads what another wrote, and can write itself."""
    host = f"{socket.gethostname()} (node {node[:8]})"
    if (unseen := _unseen(Path(folder) / wrote, by=wrote, on=host)) is not None:
        return _Answer(host, unseen)
    try:
        _write(Path(folder) / node, make=False)
    except OSError as error:
        return _Answer(host, f"{host} cannot write there: {error.strerror}")
    return _Answer(host, None)


def _ask(folder: Path, nodes: list[str], *, wrote: str) -> dict[str, _Answer]:
    """The answer of each machine, whatever has become of it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(look)
    asked: dict[str, Any] = {
        node: task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            str(folder), node, wrote
        )
        for node in nodes
    }
    deadline = time.monotonic() + _ANSWER_S
    return {node: _answer(node, ref, within_s=deadline - time.monotonic()) for node, ref in asked.items()}


def _answer(node: str, ref: Any, *, within_s: float) -> _Answer:
    import ray

    try:
        answer: _Answer = ray.get(ref, timeout=max(0.1, within_s))
    except ray.exceptions.GetTimeoutError:
        return _Answer(node, f"node {node[:8]} did not say within {_ANSWER_S:.0f} s what it sees")
    except ray.exceptions.RayError as error:
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        return _Answer(node, f"node {node[:8]} could not look: {last}")
    return answer


def _write(path: Path, *, make: bool = True) -> None:
    if make:
        path.parent.mkdir(parents=True)
    path.write_text(path.name, encoding="utf-8")


def _unseen(path: Path, *, by: str, on: str) -> str | None:
    """Why what one machine has written is not seen on another; None: it is."""
    deadline, problem = time.monotonic() + _SEEN_WITHIN_S, ""
    while True:
        try:
            if path.read_text(encoding="utf-8") == path.name:
                return None
            problem = "it is incomplete"
        except OSError as error:
            problem = str(error.strerror)
        if time.monotonic() > deadline:
            return f"{on} does not see what {by} wrote there: {problem}"
        time.sleep(0.1)
