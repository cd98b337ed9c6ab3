"""Jobs as plain data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from orchestrator.cluster.jobs.values import Settings, job_identity, submission_of
from orchestrator.job import JobSpec

SETTINGS = Settings(store="/shared", requirements=("a==1",), environment=("NAME",))
TOLD = {
    "type": "SUBMISSION",
    "submission_id": "slipway-tiny-aaaaaaaa-1",
    "status": "FAILED",
    "metadata": {"slipway": "tiny", "identity": "x"},
    "start_time": 1_700_000_000_500,
    "end_time": None,
    "driver_exit_code": -9,
    "driver_agent_http_address": "http://10.0.0.7:52365",
    "driver_node_id": "ab",
    "message": None,
}


def test_settings_come_back_from_the_metadata() -> None:
    assert Settings.from_json(SETTINGS.to_json()) == SETTINGS


def test_the_same_job_is_the_same_whatever_code_runs_it(tiny_job: Callable[..., JobSpec]) -> None:
    same = job_identity(tiny_job(), SETTINGS)
    assert job_identity(tiny_job(), replace(SETTINGS, dev=True, requirements=())) == same
    assert job_identity(tiny_job("train.steps=11"), SETTINGS) != same
    assert job_identity(tiny_job(), replace(SETTINGS, until="train")) != same
    assert job_identity(tiny_job(), replace(SETTINGS, store="/other")) != same


def test_what_the_dashboard_says() -> None:
    found = submission_of(TOLD)
    assert found is not None
    assert (found.name, found.started_at, found.ended_at, found.exit_code) == ("tiny", 1_700_000_000.5, None, -9)
    assert (found.node, found.is_over, found.message) == ("10.0.0.7", True, "")


def test_what_is_not_ours_is_left_alone() -> None:
    assert submission_of({**TOLD, "metadata": {}}) is None
    assert submission_of({**TOLD, "metadata": None}) is None
    assert submission_of({**TOLD, "submission_id": None}) is None
