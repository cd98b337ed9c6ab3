"""A cluster's service, by what Ray Serve says of its applications."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.cli_print import print_services
from orchestrator.serve.host.on_cluster import services


def told(**applications: str) -> dict[str, Any]:
    named = {name.replace("__", "-"): {"status": status} for name, status in applications.items()}
    return {"applications": named, "http_options": {"host": "127.0.0.1", "port": 8123}}


def test_the_gateway_and_its_versions_are_one_service() -> None:
    (found,) = services(told(slipway="RUNNING", my__model__v12__0123ab="RUNNING"), address="http://head:8265")
    assert (found["port"], found["url"], found["model"]) == (8123, "http://127.0.0.1:8123/v1", "my-model")
    assert (found["state"], found["answers"], found["versions"][0]["version"]) == ("serving", True, "v12")


@pytest.mark.parametrize("applications", [{}, {"someone": "RUNNING"}])
def test_what_is_not_ours_is_no_service(applications: dict[str, str]) -> None:
    assert services(told(**applications), address="x") == []
    assert services({}, address="x") == []


def test_one_that_is_not_up_does_not_answer() -> None:
    (found,) = services(told(slipway="RUNNING", m__v1__0123ab="DEPLOYING"), address="x")
    assert (found["answers"], found["versions"][0]["state"]) == (False, "deploying")


def test_it_is_shown_beside_those_of_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    print_services({"services": services(told(slipway="RUNNING", m__v2__0123ab="RUNNING"), address="x")})
    assert "m v2" in capsys.readouterr().out
