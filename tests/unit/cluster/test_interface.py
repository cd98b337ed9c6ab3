"""Workers meet on the interface of their machine's address."""

from __future__ import annotations

from orchestrator.cluster.interface import GLOO, interface_of, meet_on


def test_the_loopback_has_its_address_and_nothing_has_an_unknown_one() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") is None  # RFC 5737: of documentation
    assert interface_of("::1") is None


def test_the_choice_of_the_user_stands() -> None:
    environ: dict[str, str] = {}
    meet_on("192.0.2.1", environ)
    assert environ == {}
    meet_on("127.0.0.1", environ)
    assert environ == {GLOO: "lo"}
    environ[GLOO] = "eth7"
    meet_on("127.0.0.1", environ)
    assert environ == {GLOO: "eth7"}
