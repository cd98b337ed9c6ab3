"""Secrets in the environments of a cluster and of whoever submits to it, and the search for them."""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import boto3
from harness import environment, free_port, kill_all
from ports_fixtures import get

from orchestrator.cluster.connect import prepare_environment
from orchestrator.cluster.token import token_path

_LOOK_EVERY_S = 0.05


def wait_until(true: Callable[[], object], limit_s: float, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + limit_s
    while not true():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)


@contextlib.contextmanager
def s3() -> Iterator[str]:
    """An object store on this machine; its URL."""
    port = free_port()
    call = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)
    try:
        wait_until(lambda: get(f"http://127.0.0.1:{port}/")[0] is not None, 60, server)
        yield f"http://127.0.0.1:{port}"
    finally:
        kill_all(server)


class Planted:
    """Secret values: `there` is what the cluster's machine has, `here` what the submitter's has."""

    def __init__(self, folder: Path, endpoint: str) -> None:
        self._endpoint = endpoint
        self._secret = secrets.token_hex(20)
        self.text = folder / secrets.token_hex(12)
        self.text.mkdir()
        self.tokenizer = folder / f"{secrets.token_hex(12)}.json"
        keys = {
            "WANDB_API_KEY": secrets.token_hex(20),
            "HF_TOKEN": f"hf_{secrets.token_hex(17)}",
            "AWS_SECRET_ACCESS_KEY": self._secret,
        }
        self.here = {name: f"here{secrets.token_hex(18)}" for name in keys}
        self.there = {
            **keys,
            "AWS_ACCESS_KEY_ID": "planted",
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "PLANTED_TEXT": str(self.text),
            "PLANTED_TOKENIZER": str(self.tokenizer),
        }
        self.needles = [*keys.values(), *self.here.values(), self.text.name, self.tokenizer.stem]
        self._client().create_bucket(Bucket="copies")

    def copies(self) -> list[str]:
        """What is in the bucket."""
        return [found["Key"] for found in self._client().list_objects_v2(Bucket="copies").get("Contents", [])]

    def _client(self) -> Any:
        return boto3.client(
            "s3", endpoint_url=self._endpoint, region_name="us-east-1", aws_access_key_id="planted",
            aws_secret_access_key=self._secret,
        )  # fmt: skip


class Head:
    """A cluster of one machine, started as an operator does, with some environment."""

    def __init__(self, environ: dict[str, str]) -> None:
        prepare_environment()
        self._own = tempfile.TemporaryDirectory(prefix="slipway-head-", dir="/tmp", ignore_cleanup_errors=True)
        self.folder = Path(self._own.name)
        port = free_port()
        self.dashboard = f"http://127.0.0.1:{port}"
        call = [
            str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={free_port()}",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={port}", "--num-cpus=2",
            f"--dashboard-agent-listen-port={free_port()}", f"--temp-dir={self.folder}",
            "--object-store-memory=200000000",
        ]  # fmt: skip
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(call, text=True, env=environment(**environ), **quiet)
        self.pid = self._process.pid

    def __enter__(self) -> Head:
        wait_until(lambda: get(f"{self.dashboard}/api/version")[0] is not None, 60, self._process)
        return self

    def __exit__(self, *_: object) -> None:
        kill_all(self._process)
        self._own.cleanup()


class Watch(threading.Thread):
    """Looks at the command lines of all processes of the machine, again and again, for some texts."""

    def __init__(self, texts: Sequence[str]) -> None:
        super().__init__(daemon=True)
        self._texts = [*texts, token_path().read_text()]
        self._ended = threading.Event()
        self.seen: set[str] = set()

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        while not self._ended.wait(_LOOK_EVERY_S):
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit():
                    with contextlib.suppress(OSError):
                        line = (entry / "cmdline").read_bytes().decode(errors="replace")
                        self.seen |= {text for text in self._texts if text in line}


def forms(texts: Sequence[str]) -> list[bytes]:
    """Secrets as they could be written, Ray's token among them."""
    plain = [text.encode() for text in (*texts, token_path().read_text())]
    return [*plain, *(base64.b64encode(text).rstrip(b"=") for text in plain)]


def scan(place: Path, needles: Sequence[bytes]) -> list[str]:
    """The files, by name or content, and links that have one of the needles."""
    files = (
        [place]
        if place.is_file()
        else [Path(top) / name for top, dirs, names in os.walk(place) for name in names + dirs]
    )
    found = []
    for path in files:
        content = str(path.relative_to(place)).encode() if path != place else b""
        with contextlib.suppress(OSError):
            content += path.read_bytes() if path.is_file() else b""
        if any(needle in content for needle in needles):
            found.append(str(path))
    return found
