"""Keys of a real service: closed from the first one on, exact in bursts, counted to the token, and in no log."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from export_fixtures import tiny_export
from harness import Result
from serve_fixtures import Live, live_service, question, wait_until

from orchestrator.serve.host import records

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
Slipway = Callable[..., Result]
SENTINEL = f"nobody-may-read-{uuid.uuid4().hex}"
WRONG = f"sk-{uuid.uuid4().hex}"


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Accounts of its own: a key closes all services that share them."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("state")
        patch.setenv("XDG_STATE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def live(state: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_service(tiny_export(tmp_path_factory.mktemp("keys"))) as live:
        yield live


@pytest.fixture(scope="module")
def routes(live: Live) -> list[tuple[str, str]]:
    """Every method and path that the service has, asked while it was open."""
    paths = httpx.get(f"{live.origin}/openapi.json").json()["paths"]
    told = [(method.upper(), path.replace("{name}", "tiny")) for path in paths for method in paths[path]]
    return [*told, ("GET", "/"), ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/no/such/page")]


@pytest.fixture(scope="module")
def new_key(routes: object, slipway: Slipway) -> Callable[..., dict[str, str]]:
    """Makes a key while the service runs; it was open before the first one."""

    def make(name: str, *options: object) -> dict[str, str]:
        done = slipway("keys", "create", "--name", name, *options, "--json")
        assert done.code == 0, done.stderr
        found: dict[str, str] = done.document
        return found

    return make


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def ask(live: Live, key: dict[str, str], **more: Any) -> httpx.Response:
    return httpx.post(live.completions, json={**question(8), **more}, headers=bearer(key["key"]), timeout=60)


def test_closed_on_every_route_from_the_first_key_on(
    live: Live, routes: list[tuple[str, str]], new_key: Callable[..., dict[str, str]], slipway: Slipway
) -> None:
    assert len(routes) > 12
    assert httpx.post(live.completions, json=question(8)).status_code == 200
    revoked, embeds = new_key("gone"), new_key("embeds", "--scopes", "embed")
    assert slipway("keys", "revoke", revoked["id"]).code == 0
    for method, path in routes:
        seen = {}
        for name, headers in (
            ("none", {}),
            ("wrong", bearer(WRONG)),
            ("revoked", bearer(revoked["key"])),
        ):
            answer = httpx.request(method, live.origin + path, headers=headers, timeout=30)
            seen[name] = answer.status_code
        expected = 200 if path == "/healthz" else 401
        assert set(seen.values()) == {expected}, f"{method} {path}: {seen}"
    assert ask(live, embeds).status_code == 403
    assert httpx.get(f"{live.origin}/v1/models", headers=bearer(embeds["key"])).status_code == 200


def test_a_burst_at_the_limit_is_let_in_exactly(live: Live, new_key: Callable[..., dict[str, str]]) -> None:
    key = new_key("burst", "--rpm", 12)
    began = time.monotonic()
    with ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(lambda _: ask(live, key), range(60)))
    assert time.monotonic() - began < 50.0  # else a second window had begun
    statuses = Counter(answer.status_code for answer in answers)
    assert statuses == {200: 12, 429: 48}
    assert all(int(each.headers["retry-after"]) >= 1 for each in answers if each.status_code == 429)


def test_a_revoked_key_is_out_at_once(live: Live, new_key: Callable[..., dict[str, str]], slipway: Slipway) -> None:
    key, stop, statuses = new_key("short"), threading.Event(), list[tuple[float, int]]()

    def go_on() -> None:
        while not stop.is_set():
            began = time.monotonic()
            statuses.append((began, ask(live, key).status_code))

    thread = threading.Thread(target=go_on)
    thread.start()
    wait_until(lambda: len(statuses) > 5)
    assert slipway("keys", "revoke", key["id"]).code == 0
    revoked_at, count = time.monotonic(), len(statuses)
    wait_until(lambda: len(statuses) > count + 5)
    stop.set()
    thread.join()
    assert {status for began, status in statuses if began > revoked_at} == {401}
    assert {status for _, status in statuses[:5]} == {200}


def test_usage_is_what_clients_got_also_when_a_replica_is_killed(
    live: Live, new_key: Callable[..., dict[str, str]], slipway: Slipway
) -> None:
    key = new_key("counted")
    engine_before = live_metric(live, key, "slipway_engine_completion_tokens")
    first = [ask(live, key, max_tokens=20 + i) for i in range(10)]
    made = live_metric(live, key, "slipway_engine_completion_tokens") - engine_before
    with ThreadPoolExecutor(6) as pool:
        answering = [pool.submit(ask, live, key, max_tokens=40) for _ in range(60)]
        wait_until(lambda: sum(each.done() for each in answering) > 10)
        live.kill("replica")
        second = [each.result() for each in answering]
    got = [answer.json()["usage"] for answer in (*first, *second) if answer.status_code == 200]
    row = slipway("usage", "--key", key["id"], "--json").document["total"]
    told = {name: sum(usage[name] for usage in got) for name in ("prompt_tokens", "completion_tokens")}
    sure = sum(answer.json()["usage"]["completion_tokens"] for answer in first)
    # The engine counts besides what it makes to show that it lives: a token now and then.
    assert sure <= made <= sure + 10
    assert [answer.status_code for answer in second] == [200] * 60
    assert {name: row[name] for name in told} == told


def live_metric(live: Live, key: dict[str, str], name: str) -> float:
    text = httpx.get(f"{live.origin}/metrics", headers=bearer(key["key"]), timeout=30).text
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.split("{")[0] == name)


def test_neither_keys_nor_prompts_are_in_any_file(
    live: Live, state: Path, new_key: Callable[..., dict[str, str]]
) -> None:
    key = new_key("quiet")
    secrets = (SENTINEL, key["key"], WRONG)
    for headers in (bearer(key["key"]), bearer(WRONG), {"authorization": f"Basic {SENTINEL}"}):
        with httpx.Client(headers=headers, timeout=60) as client:
            for body in (
                {**question(8), "prompt": SENTINEL},
                {**question(8), "prompt": SENTINEL, "stream": True},
                {**question(8), "prompt": {"not a": SENTINEL}},
                {**question(8), "prompt": SENTINEL, "max_tokens": 10**6},
                {**question(8), "model": SENTINEL},
                {"model": "tiny", "input": SENTINEL, SENTINEL: 1},
            ):
                client.post(live.completions, json=body)
                client.post(f"{live.origin}/v1/chat/completions", json=body)
                client.post(f"{live.origin}/v1/embeddings", json=body)
                client.post(f"{live.origin}/v1/predict", json=body)
            client.post(live.completions, content=b'{"prompt": "' + SENTINEL.encode())
            client.get(f"{live.origin}/v1/{SENTINEL}")
            client.get(f"{live.origin}/v1/usage", params={"day": SENTINEL})
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(ask, live, key, prompt=SENTINEL, stream=bool(i % 2), max_tokens=30) for i in range(60)]
        wait_until(lambda: sum(each.done() for each in asked) > 5)
        live.kill("replica")  # what is written about requests that are cut
    time.sleep(3.0)
    folders = [state, *Path("/tmp").glob(f"slipway-ray-{_supervisor(live)}-*")]
    assert len(folders) == 2
    read = 0
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        read += len(data)
        for secret in secrets:
            assert secret.encode() not in data, f"{path} has {secret}"
    assert read > 10_000


def _supervisor(live: Live) -> int:
    (pid,) = [each.pid for each in records.living() if each.port == live.port]
    assert os.path.exists(f"/proc/{pid}")
    return pid
