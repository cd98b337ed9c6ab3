"""A command speaks with a service through its socket: lines as it goes on, then a result or the error as it was."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import CapacityError, ServeError
from orchestrator.serve.host import control, records

PORT = 8123


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    deep = tmp_path / ("long-" * 30)  # names of sockets are limited to 107 bytes
    monkeypatch.setenv("XDG_STATE_HOME", str(deep))
    return deep


class Service:
    def __init__(self) -> None:
        self.gone = threading.Event()
        self.done = threading.Event()

    def __call__(self, request: dict[str, Any], tell: control.Tell) -> dict[str, Any]:
        if request["command"] == "fail":
            raise CapacityError("two are too many", fix="ask for one")
        if request["command"] == "crash":
            raise KeyError("x")
        if request["command"] == "slow":
            self.gone.wait(5)
            tell("nobody hears this")
            tell("nor this")
            self.done.set()
        tell("first")
        tell("second")
        return {"asked": request}


@pytest.fixture
def service() -> Iterator[Service]:
    handle = Service()
    with control.listening(PORT, handle):
        yield handle


def test_a_request_and_its_answer(service: Service) -> None:
    told: list[str] = []
    assert control.is_listening(PORT)
    assert control.call(PORT, {"command": "do", "n": 3}, told.append) == {"asked": {"command": "do", "n": 3}}
    assert told == ["first", "second"]


def test_errors_come_back_as_they_were(service: Service) -> None:
    with pytest.raises(CapacityError, match="two are too many") as e:
        control.call(PORT, {"command": "fail"})
    assert e.value.fix == "ask for one"
    with pytest.raises(ServeError, match="the service failed at this: KeyError"):
        control.call(PORT, {"command": "crash"})
    assert control.call(PORT, {"command": "do"})  # it goes on


def test_a_command_that_has_gone_stops_nothing(service: Service) -> None:
    with control._connected(PORT) as connection:
        connection.sendall(b'{"command": "slow"}\n')
    service.gone.set()
    assert service.done.wait(5)


def test_the_socket_is_the_owners_alone_and_goes_with_the_service() -> None:
    path = records.folder() / f"{PORT}.sock"
    with control.listening(PORT, Service()):
        assert path.stat().st_mode & 0o777 == 0o600
        assert records.commanded() == [PORT]
    assert not path.exists()
    assert not control.is_listening(PORT)
    with pytest.raises(ServeError, match=f"no service of ours takes commands on port {PORT}"):
        control.call(PORT, {"command": "do"})


def test_what_a_killed_service_left_is_no_service() -> None:
    with control.listening(PORT, Service()):
        left = records.folder() / f"{PORT}.sock"
        kept = left.with_suffix(".kept")
        left.rename(kept)
    kept.rename(left)
    assert not control.is_listening(PORT)
    with control.listening(PORT, Service()):
        assert control.is_listening(PORT)
