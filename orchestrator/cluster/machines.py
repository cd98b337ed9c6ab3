"""The machines of the Ray that this process has joined, as they are now: which stay, which are leaving, which are gone.

Ray lists a machine that has died for up to half a minute, and hands out what is on it. So each is asked itself.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from orchestrator.cluster.view import Machine, ray_node

HEAD = "node:__internal_head__"
"""A resource that Ray gives to its head alone."""
_ANSWER_LIMIT_S = 2.0
_ASKED_AT_ONCE = 32


def machines() -> list[Machine]:
    """Every machine that Ray lists as alive, in the order of their names. Takes milliseconds where all answer.

    Raises:
        Exception: of Ray's, where its control service does not answer.
    """
    import ray
    from ray._private.state import state  # the one home of free resources and of drain notices

    listed = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    free = state.available_resources_per_node()  # type: ignore[no-untyped-call]
    leaving = state.get_draining_nodes()
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        answers = list(pool.map(_answers, listed))
    found = [
        _machine(node, free.get(node["NodeID"], {}), _state(node["NodeID"] in leaving, answers=answered))
        for node, answered in zip(listed, answers, strict=True)
    ]
    return sorted(found, key=lambda machine: machine.id)


def _state(leaving: bool, *, answers: bool) -> Literal["ready", "leaving", "silent"]:
    if leaving:
        return "leaving"
    return "ready" if answers else "silent"


def _machine(
    node: Mapping[str, Any], free: Mapping[str, float], state: Literal["ready", "leaving", "silent"]
) -> Machine:
    has = ray_node(node["Resources"])
    unheld = has.model_copy(update={"cpus": free.get("CPU", 0.0), "gpus": free.get("GPU", 0.0)})
    return Machine(node["NodeID"], has, unheld, state)


def _answers(node: Mapping[str, Any]) -> bool:
    """Whether its raylet takes connections: every driver needs that, so no firewall stands between."""
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), _ANSWER_LIMIT_S).close()
    except OSError:
        return False
    return True
