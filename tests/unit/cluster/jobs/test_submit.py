"""Jobs handed over, attached to, handed over again and stopped, at a dashboard that keeps them in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.cluster.jobs import submit as submitting
from orchestrator.cluster.jobs.client import AlreadyThereError
from orchestrator.cluster.jobs.submit import again, find, stop, submit
from orchestrator.cluster.jobs.values import Settings, Submission
from orchestrator.errors import CapacityError, JobError
from orchestrator.job import JobSpec

SETTINGS = Settings(store="/shared", until="train")
TinyJob = Callable[..., JobSpec]


class Dashboard:
    """What the client asks of a cluster."""

    address = "http://head:8265"

    def __init__(self, *, ends: bool = True) -> None:
        self.jobs: list[Submission] = []
        self.logs: dict[str, str] = {}
        self._ends = ends
        self.raced = False

    def submissions(self) -> list[Submission]:
        return [] if self.raced else list(self.jobs)

    def submission(self, id: str) -> Submission:
        return next(job for job in self.jobs if job.id == id)

    def submit(self, *, id: str, command: str, runtime_env: dict[str, Any], metadata: dict[str, str]) -> None:
        if any(job.id == id for job in self.jobs):
            raise AlreadyThereError
        self.jobs.append(Submission(id=id, status="RUNNING", metadata=metadata, started_at=float(len(self.jobs))))

    def stop(self, id: str) -> None:
        if self._ends:
            self.end(id, status="STOPPED")

    def log(self, job: Submission, *, lines: int | None = None) -> str:
        return self.logs.get(job.id, "")

    def end(self, id: str, **how: Any) -> None:
        self.jobs = [replace(job, **how) if job.id == id else job for job in self.jobs]


@pytest.fixture
def cluster() -> Any:
    return Dashboard()


def test_the_same_job_twice_is_one_until_it_ends(cluster: Any, tiny_job: TinyJob) -> None:
    first = submit(cluster, tiny_job(), SETTINGS, run="runs/tiny-1")
    assert submit(cluster, tiny_job(), SETTINGS) == replace(first, attached=True)
    other = submit(cluster, tiny_job("train.steps=11"), SETTINGS)
    assert (other.attached, len(cluster.jobs)) == (False, 2)
    cluster.end(first.id, status="FAILED")
    third = submit(cluster, tiny_job(), SETTINGS)
    assert (third.attached, third.id) == (False, f"{first.id[:-1]}2")
    assert cluster.jobs[0].metadata["run"] == "runs/tiny-1"


def test_who_is_a_moment_later_attaches(cluster: Any, tiny_job: TinyJob) -> None:
    first = submit(cluster, tiny_job(), SETTINGS)
    cluster.raced = True  # it asked before the other had handed over
    assert submit(cluster, tiny_job(), SETTINGS) == replace(first, attached=True)


def test_again_is_the_same_job_with_the_same_settings(cluster: Any, tiny_job: TinyJob) -> None:
    first = submit(cluster, tiny_job(), SETTINGS, run="runs/tiny-1")
    with pytest.raises(JobError, match="has not ended"):
        again(cluster, cluster.submission(first.id))
    cluster.end(first.id, status="STOPPED")
    second = again(cluster, cluster.submission(first.id))
    old, new = cluster.submission(first.id), cluster.submission(second.id)
    assert second.id != first.id
    assert old.metadata == new.metadata


def test_a_stop_waits_for_the_end(cluster: Any, tiny_job: TinyJob) -> None:
    handed = submit(cluster, tiny_job(), SETTINGS)
    ended = stop(cluster, cluster.submission(handed.id))
    assert ended.status == "STOPPED"
    assert stop(cluster, ended) is ended


def test_one_that_does_not_end_is_told(tiny_job: TinyJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submitting, "STOP_WAIT_S", 0)
    monkeypatch.setattr(submitting, "_STOP_MARGIN_S", 0.3)
    deaf: Any = Dashboard(ends=False)
    handed = submit(deaf, tiny_job(), SETTINGS)
    with pytest.raises(CapacityError, match="has not ended"):
        stop(deaf, deaf.submission(handed.id))


def test_a_run_whose_name_only_its_log_has_is_found(cluster: Any, tiny_job: TinyJob) -> None:
    handed = submit(cluster, tiny_job(), SETTINGS)
    cluster.logs[handed.id] = 'slipway-state {"state": "training", "run": "runs/tiny-0123"}\n'
    for asked in (handed.id, "tiny", "tiny-0123", "runs/tiny-0123"):
        assert find(cluster, asked).id == handed.id
    with pytest.raises(JobError, match="no job none"):
        find(cluster, "none")
