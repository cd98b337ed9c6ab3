"""The dashboard's answers, and what is said of those that are none; by a server that answers as Ray's does."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster.jobs.client import AlreadyThereError, JobsClient
from orchestrator.cluster.jobs.values import Submission
from orchestrator.cluster.token import ensure_token
from orchestrator.errors import CapacityError, JobError

OURS = {"type": "SUBMISSION", "status": "RUNNING", "metadata": {"slipway": "tiny"}}
JOBS = [
    {**OURS, "submission_id": "slipway-tiny-2", "start_time": 2000},
    {**OURS, "submission_id": "slipway-tiny-1", "start_time": 1000},
    {**OURS, "submission_id": "theirs", "metadata": {}},
]
JOB = Submission(id="slipway-tiny-1", status="RUNNING", metadata={"slipway": "tiny"}, node_id="ab")


class Handler(http.server.BaseHTTPRequestHandler):
    """Paths to answers, by the server's table."""

    def _answer(self) -> None:
        status, body = self.server.answers.get(self.path, (404, "not there"))  # type: ignore[attr-defined]
        text = body if isinstance(body, str) else json.dumps(body)
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("RAY_ADDRESS", "http://192.0.2.1:1")  # which must not win over what was given
    ensure_token()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    version = {"version": "4", "ray_version": "2.60.0", "ray_commit": "x", "session_name": "x"}
    server.answers = {"/api/version": (200, version), "/api/jobs/": (200, JOBS)}  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def client_of(dashboard: Any) -> JobsClient:
    return JobsClient(f"http://127.0.0.1:{dashboard.server_port}")


def test_our_jobs_come_oldest_first(dashboard: Any) -> None:
    assert [job.id for job in client_of(dashboard).submissions()] == ["slipway-tiny-1", "slipway-tiny-2"]


def test_a_job_that_is_not_there_is_told(dashboard: Any) -> None:
    with pytest.raises(JobError, match="no job x"):
        client_of(dashboard).submission("x")


@pytest.mark.parametrize(("status", "said"), [(401, "(401)"), (403, "(403)"), (500, "answers 500: broken")])
def test_a_refusal_says_which(dashboard: Any, status: int, said: str) -> None:
    client = client_of(dashboard)
    dashboard.answers["/api/jobs/"] = (status, "broken")
    with pytest.raises(CapacityError) as raised:
        client.submissions()
    assert said in raised.value.message
    assert raised.value.fix


def test_without_a_token_none_is_made_that_the_cluster_would_refuse(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(CapacityError, match="there is no token here") as raised:
        JobsClient("http://127.0.0.1:1")
    assert "auth_token" in str(raised.value.fix)
    assert not (tmp_path / "token").exists()


def test_nobody_there_is_told_at_once(dashboard: Any) -> None:
    dashboard.shutdown()
    dashboard.server_close()
    with pytest.raises(CapacityError, match="did not do it"):
        client_of(dashboard)


def test_a_submission_that_is_there_already(dashboard: Any) -> None:
    client = client_of(dashboard)
    said = "ValueError: Job with submission_id x already exists. Please use another."
    dashboard.answers["/api/jobs/"] = (500, f"Traceback (most recent call last):\n  File x\n{said}\n")
    with pytest.raises(AlreadyThereError):
        client.submit(id="x", command="true", runtime_env={}, metadata={})


def test_the_end_of_a_log_and_the_whole_where_ray_has_no_end(dashboard: Any) -> None:
    client = client_of(dashboard)
    assert client.log(JOB, lines=2) == ""
    dashboard.answers["/api/jobs/slipway-tiny-1/logs"] = (200, {"logs": "a\nb\nc\n"})
    assert client.log(JOB, lines=2) == client.log(JOB) == "a\nb\nc\n"
    end = "/api/v0/logs/file?node_id=ab&filename=job-driver-slipway-tiny-1.log&lines=2"
    dashboard.answers[end] = (200, "b\nc\n")
    assert client.log(JOB, lines=2) == "b\nc\n"
    assert client.log(replace(JOB, node_id=None)) == ""
