"""Who may listen where."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.errors import JobError, ServeError
from orchestrator.job import Serve
from orchestrator.serve.host.address import asked_at, check_host
from orchestrator.serve.host.processes import check_port


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("SLIPWAY_ACCOUNTS", raising=False)


def test_others_may_reach_it_once_there_is_a_key() -> None:
    check_host("127.0.0.1", Serve())
    check_host("127.0.0.9", Serve())
    for host in ("0.0.0.0", "192.0.2.1"):
        with pytest.raises(ServeError, match="have no key, so anybody could ask") as e:
            check_host(host, Serve())
        assert "slipway keys create" in str(e.value.fix)
    assert CliRunner().invoke(app, ["keys", "create", "--name", "ana", "--json"]).exit_code == 0
    check_host("0.0.0.0", Serve())


@pytest.mark.parametrize("host", ["", "here", "300.0.0.1", "::", "127.0.0.1:80"])
def test_what_is_no_address(host: str) -> None:
    with pytest.raises(JobError, match="is no IPv4 address"):
        check_host(host, Serve())


def test_an_address_of_another_machine_is_named() -> None:
    with pytest.raises(ServeError, match=r"192\.0\.2\.1 is no address of this machine"):
        check_port(18999, "192.0.2.1")


def test_this_machine_asks_it_under_an_address_that_it_has() -> None:
    assert [asked_at(host) for host in ("0.0.0.0", "127.0.0.1", "192.0.2.1")] == ["127.0.0.1", "127.0.0.1", "192.0.2.1"]
