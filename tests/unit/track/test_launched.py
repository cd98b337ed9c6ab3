"""Who has launched an attempt."""

from __future__ import annotations

import getpass
import json
import socket

import pytest

from orchestrator.track.launched import launched_by

HERE = socket.gethostname()


def test_of_a_submission_it_is_who_has_submitted() -> None:
    metadata = {"user": "ana@laptop", "job_submission_id": "slipway-x-1", "job_name": "x"}
    environ = {
        "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"metadata": metadata, "runtime_env": {"env_vars": {"A": "s"}}})
    }
    assert launched_by(environ) == {"by": "ana@laptop", "host": HERE, "submission": "slipway-x-1"}


@pytest.mark.parametrize("said", [None, "", "{", "[]", '{"metadata": 3}', '{"metadata": {}}'])
def test_of_any_other_command_it_is_its_user(said: str | None) -> None:
    environ = {} if said is None else {"RAY_JOB_CONFIG_JSON_ENV_VAR": said}
    assert launched_by(environ) == {"by": f"{getpass.getuser()}@{HERE}", "host": HERE, "submission": None}


def test_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr(getpass, "getuser", nameless)
    assert launched_by({})["by"] == f"unknown@{HERE}"
