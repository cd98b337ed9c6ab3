"""W&B's endpoint as a small server of ours, which does its work or misbehaves; a training that reports to it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil

from orchestrator.track.wandb_file import read_records

STATUSES = {"401": 401, "429": 429, "500": 500}
MODES = (*STATUSES, "hangs", "vanishes", "garbage", "slow")
VANISHES_AFTER = 4
"""Requests: the run is open by then, and its lines are under way."""
SLOW_S = 4.0


@dataclass
class Endpoint:
    """What the server does, and what it was sent."""

    mode: str
    url: str = ""
    requests: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    """Rows that it took."""
    states: list[str] = field(default_factory=list)
    """How the runs ended, as their processes said it."""
    over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def steps(self) -> list[int]:
        """Of the lines among them."""
        return [int(row["train/step"]) for row in self.history if "train/loss" in row]

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        """To a request, as W&B does it."""
        if path.endswith("/file_stream"):
            self._take(json.loads(body))
        return self._data(json.loads(body)) if path.endswith("/graphql") else {}

    def _take(self, sent: dict[str, Any]) -> None:
        for line in sent.get("files", {}).get("wandb-history.jsonl", {}).get("content", []):
            self.history.append(json.loads(line))
        if sent.get("complete"):
            self.states.append("finished" if sent.get("exitcode") == 0 else "failed")

    def _data(self, asked: dict[str, Any]) -> dict[str, Any]:
        variables = asked.get("variables") or {}
        bucket = self._bucket(variables.get("name", ""))
        owner = {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}}
        files = [{"name": name, "uploadUrl": f"{self.url}/files"} for name in variables.get("files", [])]
        known = {
            "query RunResumeStatus": {"model": {**owner, "bucket": bucket if self.history else None}},
            "mutation UpsertBucket": {"upsertBucket": {"bucket": bucket, "inserted": not self.history}},
            "query Viewer": {"viewer": {"id": "v", "entity": "e", "username": "v", "email": "", "flags": "{}"}},
            "mutation CreateRunFiles": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}},
        }
        for name, data in known.items():
            if name in asked["query"]:
                return {"data": data}
        return {"errors": [{"message": "this server has no such thing"}], "data": None}

    def _bucket(self, name: str) -> dict[str, Any]:
        return {
            "id": "b",
            "name": name,
            "displayName": name,
            "project": {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}},
            "historyLineCount": len(self.history),
            "historyTail": json.dumps([json.dumps(line) for line in self.history[-1:]]),
            "eventsLineCount": 0,
            "eventsTail": "[]",
            "logLineCount": 0,
            "config": "{}",
            "summaryMetrics": "{}",
            "tags": [],
            "wandbConfig": '{"t": 1}',
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    endpoint: Endpoint

    def do_POST(self) -> None:
        end = self.endpoint
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with end.lock:
            end.requests += 1
            number = end.requests
        if end.mode == "hangs":
            end.over.wait()
            return
        if end.mode == "slow":
            end.over.wait(SLOW_S)
        if end.mode == "vanishes" and number > VANISHES_AFTER:
            self.server.socket.close()  # nothing listens there any more
            self.close_connection = True
            return
        with end.lock:
            answer = {} if end.mode in STATUSES else end.answer(self.path, body)
        raw = b"<html>neither JSON" if end.mode == "garbage" else json.dumps(answer).encode()
        self.send_response(STATUSES.get(end.mode, 200))
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    do_GET = do_PUT = do_POST

    def log_message(self, *_: Any) -> None:
        """Not on stderr."""


@contextlib.contextmanager
def wandb_endpoint(mode: str) -> Iterator[Endpoint]:
    """A server for as long as the block lasts; `mode` is `well` or one of `MODES`."""
    endpoint = Endpoint(mode)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"endpoint": endpoint}))
    server.daemon_threads = True
    endpoint.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield endpoint
    finally:
        endpoint.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


KEY = "1234567890abcdef" * 2 + "deadbeef"
"""In the shape of W&B's."""
JOB = """\
name: tracked
data:
  sources: [{{path: {text}}}]
  tokenizer: {{vocab_size: 320}}
  split: {{validation: 0.1}}
model: {{layers: 2, width: 64, heads: 2, context: 64}}
train:
  steps: {steps}
  batch_tokens: {batch_tokens}
  precision: fp32
  workers: {{min: 1, max: 1}}
  checkpoint: {{every_steps: 10}}
track: {{wandb: {{mode: online}}}}
"""


def write_job(folder: Path, *, steps: int, batch_tokens: int) -> Path:
    """A small job that wants W&B online."""
    words = ["wind", "sail", "rope", "gull", "storm", "night", "harbour", "lamp"]
    rng = random.Random(1)
    text, path = folder / "text.txt", folder / "tracked.yaml"
    text.write_text("\n".join(" ".join(rng.choices(words, k=9)) for _ in range(4000)))
    path.write_text(JOB.format(text=text, steps=steps, batch_tokens=batch_tokens))
    return path


@dataclass
class Trained:
    """A training without Ray, and what it left."""

    run: Path
    code: int
    stderr: str
    closing_s: float
    """From the last line to the end of the process."""
    command_lines: set[str]
    """Of the training, and of all processes below it."""
    temporary: Path

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.run / "metrics.jsonl").read_text().splitlines()]

    @property
    def step_s(self) -> float:
        """The median, without the first ones."""
        return statistics.median(line["time/step_s"] for line in self.lines[20:])

    @property
    def left_behind(self) -> list[str]:
        """What is still in TMPDIR of W&B."""
        return [path.name for path in self.temporary.iterdir() if "wandb" in path.name]

    def processes_left(self, limit_s: float) -> list[str]:
        """Those that began with this training's TMPDIR and do not end within the time."""
        until = time.monotonic() + limit_s
        while (found := processes_in(self.temporary)) and time.monotonic() < until:
            time.sleep(0.2)
        return found


def processes_in(temporary: Path) -> list[str]:
    """Command lines of the processes whose TMPDIR is there, or below."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("TMPDIR", "").startswith(str(temporary)) and process.status() != "zombie":
                found.append(" ".join(process.cmdline()))
    return found


def train(
    run: Path,
    *,
    mode: str,
    url: str = "",
    until: Callable[[psutil.Process], bool] = lambda _: False,
    limit_s: float = 240,
) -> Trained:
    """`python -m orchestrator.train.worker` on a run; ended by a `kill -9` of the worker alone once `until` says so."""
    temporary = run / "tmp"
    temporary.mkdir(exist_ok=True)
    own = {"TMPDIR": str(temporary), "WANDB_MODE": mode, "WANDB_API_KEY": KEY}
    own |= {"WANDB_BASE_URL": url} if url else {}
    environ = {**{k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}, "OMP_NUM_THREADS": "1", **own}
    seen: set[str] = set()
    began_at = time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        args = [sys.executable, "-m", "orchestrator.train.worker", "--run", str(run)]
        worker = subprocess.Popen(args, env=environ, stdout=said, stderr=said)
        process = psutil.Process(worker.pid)
        looked_at = began_at
        while worker.poll() is None and time.monotonic() < began_at + limit_s:
            if until(process):
                worker.kill()
            if time.monotonic() > looked_at + 1.0:
                looked_at = time.monotonic()
                seen |= command_lines(process)
            time.sleep(0.02)
        closing_s = time.time() - (run / "metrics.jsonl").stat().st_mtime
        worker.kill()
        worker.wait()
        said.seek(0)
        return Trained(run, worker.returncode, said.read(), closing_s, seen, temporary)


def command_lines(process: psutil.Process) -> set[str]:
    """Of a process and all below it."""
    with contextlib.suppress(psutil.Error):
        return {" ".join(member.cmdline()) for member in [process, *process.children(recursive=True)]}
    return set()  # one of them has just ended


def spooled(run: Path) -> list[int]:
    """The steps of the lines in W&B's own files, in the order of the attempts."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    found = []
    for path in sorted(run.glob("wandb/*run-*/*.wandb"), key=lambda file: file.parent.name.split("run-")[1]):
        for record in map(Record.FromString, read_records(path)):
            row = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            if "train/loss" in row:
                assert record.history.step.num == int(row["train/step"])
                found.append(int(row["train/step"]))
    return found


def files_with(folder: Path, text: str) -> list[str]:
    """Those that hold a text in clear."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return [str(path) for path in files if text.encode() in path.read_bytes()]


def after_step(run: Path, step: int) -> Callable[[psutil.Process], bool]:
    """Whether so many steps are done."""

    def reached(_: psutil.Process) -> bool:
        path = run / "metrics.jsonl"
        return path.is_file() and len(path.read_bytes().splitlines()) >= step

    return reached


def assert_nothing_left(done: Trained) -> None:
    """Neither processes nor temporary files, nor the key anywhere."""
    assert done.processes_left(limit_s=10) == []
    assert done.left_behind == []
    assert files_with(done.run, KEY) == []
    assert not [line for line in (*done.command_lines, done.stderr) if KEY in line]
