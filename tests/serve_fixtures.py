"""A live service for tests: started detached, asked all the time, its processes by their part."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch
from export_fixtures import FACTS, LM, TINY, tiny_dataset, tiny_model, tiny_probe
from harness import free_port
from safetensors.torch import save_file

from model.config import ModelConfig
from model.families import Network
from orchestrator.export.folder import logits_of
from orchestrator.export.prove import load_proven
from orchestrator.export.write import write_export
from orchestrator.job import Serve
from orchestrator.serve.host import control, detached, records
from orchestrator.serve.host.processes import HOST, marked
from orchestrator.store import commit, writing

MODEL = "tiny"
PROMPT = "def "
AS_IT_IS = Serve()
PARTS = {
    "replica": (b"ray::ServeReplica", b":engine"),
    "gateway": (b"ray::ServeReplica", b":gateway"),
    "controller": (b"ray::ServeController",),
}
"""What stands in the command lines of a service's processes."""


def wait_until(done: Callable[[], bool], limit_s: float = 60.0, what: str = "it") -> float:
    """Seconds until it was so."""
    began = time.monotonic()
    while not done():
        assert time.monotonic() - began < limit_s, f"{what} was not so after {limit_s:g} s"
        time.sleep(0.05)
    return time.monotonic() - began


def export_of(root: Path, model: Network) -> Path:
    """A committed export of any decoder, with what the trainer would have recorded of it."""
    checkpoint, probe = root / "step-00000020", tiny_probe(model.config)
    with writing(checkpoint) as tmp:
        save_file({name: t.contiguous() for name, t in model.state_dict().items()}, tmp / "model.safetensors")
        (tmp / "model.json").write_text(json.dumps({**model.config.to_dict(), "head": LM.to_dict()}))
        save_file({**probe, "trainer_logits": logits_of(model, probe).contiguous()}, tmp / "probe.safetensors")
        commit(tmp, checkpoint, {"format": 1, "step": 20, "precision": "fp32"})
    into = root / "export" / "step-00000020"
    return write_export(checkpoint=checkpoint, dataset=tiny_dataset(root / "dataset"), into=into, facts=FACTS)


def slow_export(root: Path) -> Path:
    """It computes what was trained, and takes its time."""
    large = ModelConfig(**{**TINY.to_dict(), "width": 1024, "layers": 10, "hidden": 4096, "heads": 8, "kv_heads": 8})
    return export_of(root, tiny_model(large))


def erring_export(root: Path, good: Path) -> Path:
    """It computes what was trained on its probe, and no number for a token that the clients use; `good` is another."""
    model = tiny_model(ModelConfig(**{**TINY.to_dict(), "tie_embeddings": False}))
    bad = load_proven(good).tokenizer.encode(PROMPT).ids[0]
    assert bad not in tiny_probe(TINY)["input_ids"]
    with torch.no_grad():
        model.get_parameter("embed.weight")[bad] = float("nan")
    return export_of(root, model)


@dataclass(frozen=True)
class Live:
    """A detached service."""

    port: int
    mark: str

    @property
    def origin(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def completions(self) -> str:
        return f"{self.origin}/v1/completions"

    def pids(self, part: str) -> list[int]:
        """The processes of one of PARTS."""
        return [pid for pid in marked(self.mark) if all(word in command_of(pid) for word in PARTS[part])]

    def kill(self, part: str) -> int:
        """SIGKILL to one process of a part; returns its id."""
        pid = self.pids(part)[0]
        os.kill(pid, signal.SIGKILL)
        return pid

    def rss_bytes(self, part: str) -> int:
        """Memory of all processes of a part."""
        return sum(psutil.Process(pid).memory_info().rss for pid in self.pids(part))

    def bring(self, export: Path, settings: Serve = AS_IT_IS, **more: Any) -> dict[str, Any]:
        """What `slipway serve EXPORT --port` asks of the service; raises as it does."""
        request = {"command": "rollout", "model": MODEL, "export": str(export)}
        return control.call(self.port, {**request, "settings": settings.model_dump(mode="json"), **more})

    def versions(self) -> dict[str, float]:
        """Shares by version."""
        return {each["version"]: each["share"] for each in control.call(self.port, {"command": "status"})["versions"]}

    def events(self) -> list[tuple[str, str]]:
        """What became of which version."""
        lines = records.history_path(self.port).read_text().splitlines()
        return [(each["event"], each["version"]) for each in map(json.loads, lines)]

    def metric(self, name: str) -> float:
        """The sum of a metric over models and versions."""
        text = httpx.get(f"{self.origin}/metrics", timeout=30).text
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.split("{")[0] == name)


@contextlib.contextmanager
def live_service(export: Path, settings: Serve = AS_IT_IS, *, follow: Path | None = None) -> Iterator[Live]:
    """A service that listens, and ends with the block."""
    port = free_port()
    try:
        detached.start_detached(export, settings=settings, model_name=MODEL, port=port, follow=follow)
        (record,) = [each for each in records.living() if each.port == port]
        yield Live(port, record.mark)
    finally:
        detached.stop(port)


def command_of(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


@dataclass(frozen=True)
class Failure:
    """A request that was not answered as it should."""

    stream: bool
    begun: bool
    """Whether the client had had a piece of the answer."""
    ended_at: float
    what: str


def question(max_tokens: int = 40) -> dict[str, Any]:
    """The body of a completion of so many tokens."""
    return {"model": MODEL, "prompt": PROMPT, "max_tokens": max_tokens, "ignore_eos": True}


class Clients:
    """Threads that ask all the time, whole answers and streams in turn, and keep what came of it."""

    def __init__(self, url: str, count: int = 6, *, max_tokens: int = 40) -> None:
        """`url`: of the route of completions."""
        self.answers: Counter[str] = Counter()
        """By version."""
        self.failures: list[Failure] = []
        self.longest_s = 0.0
        self.refused: list[float] = []
        """When a connection was refused: nothing was sent, and the client tried again."""
        self._url, self._max_tokens = url, max_tokens
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(bool(i % 2),)) for i in range(count)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(90)

    @property
    def answered(self) -> int:
        return self.answers.total()

    def wait_answers(self, more: int, limit_s: float = 60.0) -> float:
        """Until so many more were answered; the seconds that took."""
        before = self.answered
        return wait_until(lambda: self.answered >= before + more, limit_s, f"{more} more answers")

    def _ask(self, stream: bool) -> None:
        with httpx.Client(timeout=60) as client:
            while not self._stop.is_set():
                began = time.monotonic()
                try:
                    self._one(client, stream)
                except httpx.ConnectError:
                    self.refused.append(time.monotonic())
                self.longest_s = max(self.longest_s, time.monotonic() - began)
                time.sleep(0.05)

    def _one(self, client: httpx.Client, stream: bool) -> None:
        body = {**question(self._max_tokens), "stream": stream}
        text = ""
        try:
            with client.stream("POST", self._url, json=body) as answer:
                for part in answer.iter_text():
                    text += part
                good = answer.status_code == 200 and ('"usage"' in text or "data: [DONE]" in text)
                if good and '"error"' not in text:
                    self.answers[answer.headers["x-slipway-version"]] += 1
                    return
                what = f"{answer.status_code} {text[-300:]}"
        except httpx.ConnectError:
            raise
        except httpx.HTTPError as error:
            what = repr(error)
        self.failures.append(Failure(stream, "data: " in text, time.monotonic(), what))
