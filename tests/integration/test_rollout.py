"""Versions come and go on a live service while clients ask: nobody's request fails."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from export_fixtures import TINY, alter, forge_manifest, tiny_export
from harness import Result, free_port
from serve_fixtures import Clients, command_of, wait_until

from model.config import ModelConfig
from orchestrator.errors import ServeError, StoreError
from orchestrator.job import Serve
from orchestrator.serve.host import control, records
from orchestrator.serve.host.processes import HOST, marked

Slipway = Callable[..., Result]


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    longer = ModelConfig(**{**TINY.to_dict(), "context": 128})
    return {
        "one": tiny_export(tmp_path_factory.mktemp("one")),
        "two": tiny_export(tmp_path_factory.mktemp("two"), config=longer),
    }


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def port(state: Path, exports: dict[str, Path], slipway: Slipway) -> Iterator[int]:
    """A live service of model `tiny` at v1."""
    port = free_port()
    done = slipway("serve", exports["one"], "--port", port, "--detach", "--json")
    assert done.code == 0, done.stderr
    yield port
    assert slipway("serve", "--stop", "--json").code == 0
    assert records.living() == []


def versions(port: int) -> list[tuple[str, str, float]]:
    found = control.call(port, {"command": "status"})["versions"]
    return [(each["model"], each["version"], each["share"]) for each in found]


def test_a_canary_takes_over_and_rollback_goes_back_while_clients_ask(
    port: int, exports: dict[str, Path], slipway: Slipway
) -> None:
    url = f"http://{HOST}:{port}/v1"
    with Clients(f"{url}/completions", 3) as clients:
        wait_until(lambda: clients.answers["v1"] > 5)
        done = slipway("serve", exports["two"], "--port", port, "--canary", "30%", "--for", "6s", "--json")
        assert done.code == 0, done.stderr
        assert {name: done.document[name] for name in ("model", "version", "before", "verdict")} == {
            "model": "tiny",
            "version": "v2",
            "before": "v1",
            "verdict": "promoted",
        }
        assert "v2 gets 30% of the requests for 6 s" in done.stderr
        assert versions(port) == [("tiny", "v2", 1.0)]
        assert clients.answers["v2"] > 3
        (row,) = slipway("serve", "--status", "--json").document["services"]
        assert [each["version"] for each in row["versions"]] == ["v2"]
        back = slipway("rollback", "tiny", "--json")
        assert back.code == 0, back.stderr
        assert (back.document["version"], back.document["before"]) == ("v1", "v2")
        before = clients.answers["v1"]
        wait_until(lambda: clients.answers["v1"] > before + 5)
    assert clients.failures + clients.refused == []
    events = [json.loads(line)["event"] for line in records.history_path(port).read_text().splitlines()]
    assert events == ["started", "canary", "promoted", "promoted"]


def test_weights_are_swapped_and_a_killed_replica_is_replaced_while_clients_ask(
    port: int, exports: dict[str, Path], tmp_path: Path
) -> None:
    same = Path(shutil.copytree(exports["one"], tmp_path / "step-00000030"))
    request = {"command": "rollout", "model": "tiny", "export": str(same), "settings": Serve().model_dump(mode="json")}
    with Clients(f"http://{HOST}:{port}/v1/completions", 3) as clients:
        wait_until(lambda: clients.answers["v1"] > 5)
        done = control.call(port, {**request, "in_place": True})
        assert done["version"] == "v2"
        assert done["reason"].startswith("swapped in, ")
        assert int(done["reason"].split()[2]) <= 50
        wait_until(lambda: clients.answers["v2"] > 5)
        assert clients.failures + clients.refused == []
        (replica,) = [pid for pid in marked(records.living()[0].mark) if b":engine" in command_of(pid)]
        os.kill(replica, signal.SIGKILL)
        before = clients.answers["v2"]
        wait_until(lambda: clients.answers["v2"] > before + 10, 90)
    # At most what it had begun to tell; all else went to the replica after it.
    assert len(clients.failures) + len(clients.refused) <= 3, clients.failures
    assert set(clients.answers) == {"v1", "v2"}


def test_what_is_bad_never_answers(port: int, exports: dict[str, Path], slipway: Slipway, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(exports["two"], tmp_path / "step-00000020"))
    (broken / "tokenizer.json").unlink()
    with Clients(f"http://{HOST}:{port}/v1/completions", 1) as clients:
        refused = slipway("serve", broken, "--port", port, "--json")
        assert (refused.code, refused.document["error"]["kind"]) == (6, "store")
        wait_until(lambda: clients.answers["v1"] > 5)
    assert (clients.failures, clients.refused, set(clients.answers)) == ([], [], {"v1"})
    assert versions(port) == [("tiny", "v1", 1.0)]
    # Nor in place of the weights that a replica has: there it proves what it reads, before it lets go of anything.
    altered = Path(shutil.copytree(exports["one"], tmp_path / "step-00000040"))
    alter(altered, lambda tensors: tensors["model.norm.weight"].fill_(float("nan")))
    request = {"command": "rollout", "model": "tiny", "settings": Serve().model_dump(mode="json"), "in_place": True}
    with Clients(f"http://{HOST}:{port}/v1/completions", 1) as clients:
        with pytest.raises(StoreError, match=r"tensor model\.norm\.weight has SHA-256"):
            control.call(port, {**request, "export": str(altered)})
        forge_manifest(altered)
        with pytest.raises(ServeError, match="does not prove against"):
            control.call(port, {**request, "export": str(altered)})
        before = clients.answers["v1"]
        wait_until(lambda: clients.answers["v1"] > before + 5)
    assert (clients.failures, clients.refused, set(clients.answers)) == ([], [], {"v1"})
    assert versions(port) == [("tiny", "v1", 1.0)]
    unknown = slipway("rollback", "tiny", "--json")
    assert "had no version before" in unknown.document["error"]["message"]
