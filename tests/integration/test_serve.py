"""A real deployment on a real Ray, asked by the official client; and a supervisor that leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from export_fixtures import TINY, tiny_export
from harness import free_port

from model.config import ModelConfig
from orchestrator.cluster.connect import Session
from orchestrator.errors import CapacityError, ServeError, StoreError
from orchestrator.job import Replicas, Serve
from orchestrator.serve.deployment.deploy import Service, ask, deploy
from orchestrator.serve.host import detached, records
from orchestrator.serve.host.processes import HOST, marked, port_is_free

CONTEXT = 4096
SETTINGS = Serve(max_tokens=4000, max_ongoing_requests=8)


def wait_until(done: Callable[[], bool], limit_s: float = 30.0) -> None:
    deadline = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = ModelConfig(**{**TINY.to_dict(), "context": CONTEXT})
    return tiny_export(tmp_path_factory.mktemp("served"), config=config)


@pytest.fixture(scope="module")
def service(session: Session, export: Path) -> Iterator[Service]:
    session.connect()
    service = deploy(export, settings=SETTINGS, model_name="tiny", port=free_port())
    yield service
    service.stop()
    assert port_is_free(service.port)


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=service.url, api_key="none", max_retries=0) as client:
        yield client


def complete(client: openai.OpenAI, **fields: Any) -> Any:
    return client.completions.create(**{"model": "tiny", "prompt": "def add(", "seed": 1, **fields})


def test_a_completion_with_usage(client: openai.OpenAI) -> None:
    answer = complete(client, max_tokens=12, temperature=0)
    assert (answer.model, answer.choices[0].finish_reason) == ("tiny", "length")
    assert answer.usage.completion_tokens == 12
    assert answer.system_fingerprint.startswith("fp_")


def test_it_lists_its_model(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "slipway"


def test_a_stream_is_the_same_text_in_whole_characters(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"max_tokens": 2000, "extra_body": {"ignore_eos": True}}
    whole = complete(client, **asked)
    chunks = list(complete(client, stream=True, stream_options={"include_usage": True}, **asked))
    *pieces, last = chunks
    assert "".join(chunk.choices[0].text for chunk in pieces) == whole.choices[0].text
    assert pieces[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert (last.choices, last.usage) == ([], whole.usage)
    assert len(pieces) > 5


def test_a_stop_text_never_leaks(client: openai.OpenAI) -> None:
    whole = complete(client, max_tokens=100).choices[0].text
    stop = whole[10:13]
    stopped = complete(client, max_tokens=100, stop=stop).choices[0]
    assert (stopped.text, stopped.finish_reason) == (whole[: whole.index(stop)], "stop")
    streamed = complete(client, max_tokens=100, stop=[stop, "never there"], stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == stopped.text


def test_n_choices_and_a_seed(client: openai.OpenAI) -> None:
    once, again = (complete(client, n=3, max_tokens=20, prompt=["a", [5, 6]]) for _ in range(2))
    assert [choice.index for choice in once.choices] == list(range(6))
    assert once.choices == again.choices
    assert len({choice.text for choice in once.choices}) == 6


def test_logprobs_of_a_prompt_and_its_completion_whole_and_in_a_stream(client: openai.OpenAI) -> None:
    asked = {"prompt": "é🚢 = ", "max_tokens": 40, "logprobs": 2, "echo": True}
    (choice,) = complete(client, **asked).choices
    told = choice.logprobs
    assert {len(told.tokens), len(told.token_logprobs), len(told.top_logprobs), len(told.text_offset)} == {
        complete(client, **asked).usage.total_tokens
    }
    assert (told.token_logprobs[0], told.top_logprobs[0], told.text_offset[0]) == (None, None, 0)
    assert all(top[token] < 0 for token, top in list(zip(told.tokens, told.top_logprobs, strict=True))[1:])
    pieces = [chunk.choices[0] for chunk in complete(client, stream=True, **asked)]
    assert "".join(piece.text for piece in pieces) == choice.text
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [value for piece in pieces for value in getattr(piece.logprobs, name)] == getattr(told, name)
    scored = complete(client, **{**asked, "max_tokens": 0}).choices[0].logprobs
    assert scored.token_logprobs == told.token_logprobs[: len(scored.tokens)]
    plain = complete(client, **{**asked, "echo": False}).choices[0].logprobs
    assert plain.token_logprobs == told.token_logprobs[len(scored.tokens) :]
    assert complete(client, max_tokens=4).choices[0].logprobs is None


def test_another_model_is_openais_404(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="The model `gpt-4` does not exist") as e:
        complete(client, model="gpt-4")
    assert e.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"temperature": 9}, "temperature", None),
        ({"logprobs": 6}, "logprobs", None),
        ({"max_tokens": 4001}, "max_tokens", None),
        ({"prompt": [5] * 4090, "max_tokens": 10}, "prompt", "context_length_exceeded"),
        ({"prompt": [5] * 4096, "stream": True}, "prompt", "context_length_exceeded"),
    ],
)
def test_a_value_out_of_range_is_openais_400(
    client: openai.OpenAI, fields: dict[str, Any], param: str, code: str | None
) -> None:
    with pytest.raises(openai.BadRequestError) as e:
        complete(client, **fields)
    assert (e.value.param, e.value.code) == (param, code)


def test_bodies_that_are_none(service: Service) -> None:
    url = f"{service.url}/completions"
    assert httpx.post(url, content=b"{").json()["error"]["type"] == "invalid_request_error"
    assert httpx.post(url, content=b" " * (5 << 20)).status_code == 413
    assert httpx.get(f"http://{HOST}:{service.port}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"http://{HOST}:{service.port}/nothing").json()["error"]["code"] == "unknown_url"


def test_concurrent_requests_get_what_each_gets_alone(service: Service, client: openai.OpenAI) -> None:
    async def all_at_once() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=service.url, api_key="none", max_retries=0) as concurrent:
            asked = [
                concurrent.completions.create(model="tiny", prompt=f"p{i}", seed=i, max_tokens=40) for i in range(8)
            ]
            return await asyncio.gather(*asked)

    together = [answer.choices[0].text for answer in asyncio.run(all_at_once())]
    assert together == [complete(client, prompt=f"p{i}", seed=i, max_tokens=40).choices[0].text for i in range(8)]


def test_as_many_as_the_settings_promise_are_let_in_at_one_moment(service: Service) -> None:
    async def burst() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=service.url, api_key="none", max_retries=0) as concurrent:
            ask = concurrent.completions.with_raw_response.create
            asked = [
                ask(model="tiny", prompt="def ", seed=i, max_tokens=4) for i in range(4 * SETTINGS.max_ongoing_requests)
            ]
            return await asyncio.gather(*asked)

    for _ in range(3):
        assert [answer.status_code for answer in asyncio.run(burst())] == [200] * 4 * SETTINGS.max_ongoing_requests


def test_whoever_hangs_up_frees_the_engine(service: Service, client: openai.OpenAI) -> None:
    def told(name: str) -> float:
        lines = httpx.get(f"http://{HOST}:{service.port}/metrics", timeout=10.0).text.splitlines()
        (value,) = (line.split()[-1] for line in lines if line.startswith(f"slipway_engine_{name}{{"))
        return float(value)

    before = told("completion_tokens")
    for _ in range(4):
        with complete(client, max_tokens=4000, temperature=0, stream=True) as stream:
            next(iter(stream))
    with pytest.raises(openai.APITimeoutError):
        complete(client, max_tokens=4000, temperature=0, timeout=0.05)
    while told("running") > 0:
        time.sleep(0.05)
    assert told("completion_tokens") - before < 0.5 * 5 * 4000
    with complete(client, max_tokens=4000, temperature=0, stream=True) as stream:
        next(iter(stream))
        assert told("running") == 1


def test_ask_is_greedy_unless_told(service: Service) -> None:
    once = ask(service, ["def ", "class "], max_tokens=8)
    assert [answer["prompt"] for answer in once] == ["def ", "class "]
    assert once == ask(service, ["def ", "class "], max_tokens=8)
    with pytest.raises(ServeError, match="did not complete 'x'"):
        ask(Service(service.url, "other", service.port), ["x"], max_tokens=1)


def test_what_cannot_be_deployed_is_refused_at_once(service: Service, export: Path) -> None:
    other = free_port()
    with pytest.raises(ServeError, match=f"listens on port {service.port} of this Ray already, not on {other}"):
        deploy(export, settings=SETTINGS, model_name="tiny", port=other)
    greedy = SETTINGS.model_copy(update={"replicas": Replicas(min=1000, max=1000)})
    with pytest.raises(CapacityError, match=r"serve\.replicas\.min 1000 of 1 CPU each need 1000"):
        deploy(export, settings=greedy, model_name="tiny", port=service.port)
    missing = export.with_name("step-00000099")
    with pytest.raises(StoreError, match="step-00000099 is not complete"):
        deploy(missing, settings=SETTINGS, model_name="tiny", port=service.port)
    assert ask(service, ["def "], max_tokens=1)  # none of this has touched the service


def test_a_second_deployment_replaces_the_first(service: Service, export: Path) -> None:
    same = deploy(export, settings=SETTINGS, model_name="tiny", port=service.port)
    assert ask(same, ["def "], max_tokens=1)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


def left_of(pid: int) -> list[str]:
    return [str(path) for path in Path("/tmp").glob(f"slipway-ray-{pid}-*")]


def shared_memory(pids: list[int]) -> set[str]:
    """What these processes have mapped of /dev/shm."""
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    return {line[line.index("/dev/shm/") :] for line in lines if "/dev/shm/" in line}


def test_a_detached_service_lives_on_and_ends_whole(state: Path, export: Path) -> None:
    port = free_port()
    started = detached.start_detached(export, settings=SETTINGS, model_name="tiny", port=port)
    (running,) = detached.status()
    shared = shared_memory(marked(running["mark"]))
    assert started == {"url": f"http://{HOST}:{port}/v1", "model": "tiny", "pid": running["pid"]}
    assert (running["state"], running["answers"], running["export"]) == ("ready", True, str(export))
    assert len(ask(Service(started["url"], "tiny", port), ["def "], max_tokens=4)) == 1
    with pytest.raises(ServeError, match=f"port {port} serves tiny already"):
        detached.start_detached(export, settings=SETTINGS, model_name="tiny", port=port)
    with pytest.raises(ServeError, match=f"no detached service runs on port 1; there are on {port}"):
        detached.stop(1)
    assert [service["port"] for service in detached.stop()] == [port]
    assert detached.status() == []
    assert marked(running["mark"]) == []
    assert port_is_free(port)
    assert left_of(running["pid"]) == []
    assert not any(Path(name).exists() for name in shared)


def test_an_altered_export_is_refused_with_the_supervisors_error(state: Path, export: Path, tmp_path: Path) -> None:
    altered = Path(shutil.copytree(export, tmp_path / "altered"))
    with (altered / "model.safetensors").open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"\x01")
    with pytest.raises(StoreError, match=r"tensor model\.norm\.weight has SHA-256") as e:
        detached.start_detached(altered, settings=SETTINGS, model_name="tiny", port=free_port())
    assert e.value.exit_code == 6
    assert e.value.fix is not None
    assert detached.status() == []


def names_of(pid: int) -> str:
    """Its command line; empty for one that has just ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().strip("\0")[:200]
    return ""


STARTER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
from pathlib import Path
from orchestrator.job import Serve
from orchestrator.serve.host.detached import start_detached
start_detached(Path(sys.argv[1]), settings=Serve(), model_name="tiny", port=int(sys.argv[2]))
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_a_starting_command_that_is_ended_takes_the_supervisor_along(
    state: Path, export: Path, signum: signal.Signals
) -> None:
    port = free_port()
    starter = subprocess.Popen([sys.executable, "-c", STARTER, str(export), str(port)], stderr=subprocess.DEVNULL)
    wait_until(lambda: bool(records.living()))
    record = json.loads((records.folder() / f"{port}.json").read_text())
    wait_until(lambda: bool(left_of(record["pid"])))  # Ray is starting
    starter.send_signal(signum)
    starter.wait(60)
    gone_by = time.monotonic() + 30
    while left := marked(record["mark"]):
        assert time.monotonic() < gone_by, f"still there: {[names_of(pid) for pid in left]}"
        time.sleep(0.05)
    wait_until(lambda: records.living() == [], 5)  # a process lets go of its lock after its environment is gone
    assert left_of(record["pid"]) == []
