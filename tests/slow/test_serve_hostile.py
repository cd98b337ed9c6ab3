"""Large, deep, slow and idle clients of a real service get the right status; the others notice nothing."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest
from export_fixtures import tiny_export
from serve_fixtures import Clients, Live, live_service, question

from orchestrator.serve.host.processes import HOST

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
MEGABYTE = bytes(1 << 20)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_service(tiny_export(tmp_path_factory.mktemp("hostile"))) as live:
        yield live


@pytest.fixture
def others(live: Live) -> Iterator[Clients]:
    """Clients beside; none of them may fail or wait long."""
    with Clients(live.completions, 4) as clients:
        clients.wait_answers(10)
        yield clients
        clients.wait_answers(10)
    assert clients.failures == []
    assert clients.refused == []
    assert clients.longest_s < 5.0


@pytest.mark.parametrize("chunked", [False, True])
def test_three_hundred_megabytes(live: Live, others: Clients, chunked: bool) -> None:
    before = live.rss_bytes("gateway")
    fields = b"transfer-encoding: chunked" if chunked else b"content-length: %d" % (300 << 20)
    part = b"%x\r\n%s\r\n" % (len(MEGABYTE), MEGABYTE) if chunked else MEGABYTE
    with socket.create_connection((HOST, live.port), timeout=30) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n" + fields + b"\r\n\r\n")
        sent = 0
        try:
            while sent < 300:
                connection.sendall(part)
                sent += 1
        except OSError:
            pass  # it has heard enough
        answer = received(connection)
    assert b" 413 " in answer.split(b"\r\n")[0], answer[:300]
    assert live.rss_bytes("gateway") - before < 128 << 20


def test_deep_json_and_long_prompts(live: Live, others: Clients) -> None:
    deep = b'{"model": "tiny", "prompt": ' + b"[" * 10_000 + b"]" * 10_000 + b"}"
    million = json.dumps({**question(1), "prompt": [5] * 1_000_000}, separators=(",", ":")).encode()
    text = json.dumps({**question(1), "prompt": "def " * 900_000}).encode()
    for body in (deep, million, text):
        answer = httpx.post(live.completions, content=body, headers={"content-type": "application/json"}, timeout=60)
        assert answer.status_code == 400, answer.text[:300]
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert len(answer.text) < 2000


def test_headers_that_trickle(live: Live, others: Clients) -> None:
    began = time.monotonic()
    with socket.create_connection((HOST, live.port), timeout=2) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nx-slow: ")
        answer = trickled(connection, limit_s=30.0)
    assert b" 408 " in answer.split(b"\r\n")[0], answer[:300]
    assert 8.0 < time.monotonic() - began < 20.0


def test_a_body_that_trickles(live: Live, others: Clients) -> None:
    began = time.monotonic()
    with socket.create_connection((HOST, live.port), timeout=2) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5000\r\n\r\n")
        answer = trickled(connection, limit_s=60.0)
    assert b" 408 " in answer.split(b"\r\n")[0], answer[:300]
    assert 25.0 < time.monotonic() - began < 45.0


def test_five_hundred_idle_connections(live: Live, others: Clients) -> None:
    with ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection((HOST, live.port), timeout=30)) for _ in range(500)]
        others.wait_answers(40)
        answers = [received(connection) for connection in idle]
    assert {answer.split(b"\r\n")[0] for answer in answers} == {b"HTTP/1.1 408 Request Timeout"}


def received(connection: socket.socket) -> bytes:
    """What comes until the end."""
    data = b""
    try:
        while part := connection.recv(65536):
            data += part
    except OSError:
        pass
    return data


def trickled(connection: socket.socket, *, limit_s: float) -> bytes:
    """Send a byte now and then until something comes back."""
    connection.settimeout(0.5)
    ends_at = time.monotonic() + limit_s
    while time.monotonic() < ends_at:
        connection.sendall(b"a")
        try:
            if data := connection.recv(65536):
                return data
        except TimeoutError:
            continue
        break
    return b""
