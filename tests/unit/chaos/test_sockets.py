"""Connections between two processes: found, and cut."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from orchestrator.chaos import sockets

CLIENT = "import socket, sys; c = socket.create_connection((sys.argv[1], int(sys.argv[2]))); c.send(b'x'); c.recv(1)"


@pytest.fixture(params=["127.0.0.1", "::1", "mapped"])
def connected(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, int]]:
    """This process's end of a connection, and the number of the process that has the other."""
    dual = request.param == "mapped"  # a server for both families names IPv4 addresses as IPv6 has them
    host = "::" if dual else request.param
    family = socket.AF_INET if host == "127.0.0.1" else socket.AF_INET6
    try:
        server = socket.create_server((host, 0), family=family, dualstack_ipv6=dual)
    except (OSError, ValueError):
        pytest.skip("no IPv6 here")
    call = [sys.executable, "-c", CLIENT, "127.0.0.1" if dual else host, str(server.getsockname()[1])]
    with server, subprocess.Popen(call, stderr=subprocess.DEVNULL) as client:
        server.settimeout(30)
        own, _ = server.accept()
        with own:
            assert own.recv(1) == b"x"
            yield own, client.pid
            client.kill()


def test_both_ends_are_found_and_only_between_these(connected: tuple[socket.socket, int]) -> None:
    own, pid = connected
    ends = sockets.between([os.getpid(), pid])
    assert len(ends) == 2
    assert own.getsockname()[1] in [end.source[1] for end in ends]
    assert sockets.between([os.getpid()]) == []
    assert sockets.between([pid]) == []
    assert sockets.between([]) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may end a connection")
def test_a_cut_connection_is_an_error_at_both_ends(connected: tuple[socket.socket, int]) -> None:
    own, pid = connected
    ends = sockets.between([os.getpid(), pid])
    for end in ends:
        sockets.destroy(end)
    assert sockets.between([os.getpid(), pid]) == []
    own.settimeout(10)
    with pytest.raises(ConnectionError):
        own.recv(1)
    sockets.destroy(ends[0])  # one that is gone is no error


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may end a connection")
def test_trying_out_leaves_nothing() -> None:
    sockets.try_out()
    assert sockets.between([os.getpid()]) == []
