"""Which machines of a cluster count."""

from __future__ import annotations

import socket

import pytest

from orchestrator.cluster.machines import _answers, _machine, _state
from orchestrator.cluster.view import Machine, ready_view
from orchestrator.plan import Node


@pytest.mark.parametrize(
    ("leaving", "answers", "expected"),
    [(False, True, "ready"), (False, False, "silent"), (True, True, "leaving"), (True, False, "leaving")],
)
def test_a_machine_stays_leaves_or_is_silent(leaving: bool, answers: bool, expected: str) -> None:
    assert _state(leaving, answers=answers) == expected


def test_what_is_free_is_told_from_what_there_is() -> None:
    listed = {"NodeID": "a", "Resources": {"CPU": 8.0, "GPU": 2.0, "memory": 1e9, "accelerator_type:H100": 1.0}}
    found = _machine(listed, {"CPU": 3.0}, "ready")  # a resource that is all held is left out
    assert (found.has.cpus, found.has.gpus, found.free.cpus, found.free.gpus) == (8, 2, 3, 0)
    assert found.free.gpu_name == "H100"


def test_a_raylet_that_has_died_takes_no_connection() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        node = {"NodeManagerAddress": "127.0.0.1", "NodeManagerPort": listening.getsockname()[1]}
        assert _answers(node)
    assert not _answers(node)


def test_a_view_has_the_machines_that_stay() -> None:
    def machine(name: str, state: str) -> Machine:
        return Machine(name, Node(cpus=4), Node(cpus=1), state)  # type: ignore[arg-type]

    machines = [machine("a", "ready"), machine("b", "leaving"), machine("c", "silent")]
    assert ready_view(machines).nodes == [Node(cpus=4)]
    assert ready_view(machines, free=True).nodes == [Node(cpus=1)]
    assert ready_view(machines[1:]).describe() == "0 CPUs and 0 GPUs on 1 node(s)"
