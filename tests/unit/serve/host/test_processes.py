"""Processes by their mark, ports by trying them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.cluster import connect
from orchestrator.errors import ServeError
from orchestrator.serve.host.processes import (
    HOST,
    MARK,
    check_port,
    kill_marked,
    marked,
    port_is_free,
    remove_ray_folders,
)


def test_a_mark_is_inherited_and_ends_with_the_process() -> None:
    child = "import subprocess; subprocess.run(['sleep', '60'])"
    parent = subprocess.Popen([sys.executable, "-c", child], env={**os.environ, MARK: "mark-7"})
    try:
        while len(marked("mark-7")) < 2:
            assert parent.poll() is None
        assert parent.pid in marked("mark-7")
        assert marked("mark-") == []
        kill_marked("mark-7")
    finally:
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 10
    while marked("mark-7"):  # the kernel ends an orphan in its own time
        assert time.monotonic() < deadline


def test_a_port_in_use_is_named_with_a_way_out() -> None:
    with socket.socket() as server:
        server.bind((HOST, 0))
        server.listen()
        port = server.getsockname()[1]
        assert not port_is_free(port)
        with pytest.raises(ServeError, match=rf"port {port} of 127\.0\.0\.1 is in use") as e:
            check_port(port)
        assert e.value.exit_code == 7
        assert "--port" in str(e.value.fix)
    assert port_is_free(port)


def test_a_connection_that_lingers_does_not_take_the_port() -> None:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((HOST, 0))
        server.listen()
        port = server.getsockname()[1]
        with socket.create_connection((HOST, port)):
            accepted, _ = server.accept()
            accepted.close()  # this side closes first, and so lingers in TIME_WAIT
    assert port_is_free(port)


def test_what_a_killed_supervisor_left_is_named_as_connect_names_it() -> None:
    pid = 2**22 + 1  # above the largest process number of Linux
    left = Path(f"/tmp/{connect._TMP_PREFIX}{pid}-x")
    left.mkdir()
    remove_ray_folders(pid)
    assert not left.exists()


def test_a_process_that_is_marked_itself_kills_the_others_first() -> None:
    """Children that it starts have higher numbers, so that it would come before them."""
    code = """
import subprocess, sys
from orchestrator.serve.host.processes import kill_marked
for _ in range(3):
    subprocess.Popen(["sleep", "60"])
kill_marked(sys.argv[1])
"""
    mark = f"mark-of-{os.getpid()}"
    done = subprocess.run([sys.executable, "-c", code, mark], env={**os.environ, MARK: mark}, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    ends_at = time.monotonic() + 10
    while marked(mark):
        assert time.monotonic() < ends_at
        time.sleep(0.02)
