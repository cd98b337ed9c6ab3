"""A submitted job, as plain data: how it was asked for, and what Ray tells of it. Pure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from orchestrator.identity import content_hash
from orchestrator.job import JobSpec

Status = Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]
"""Ray's own."""
MARK = "slipway"
"""The key of a job's metadata that makes it one of ours; its value is the job's name."""


@dataclass(frozen=True)
class Settings:
    """How a job is run: what `retry` needs besides the job itself. Holds no secret: the dashboard shows it."""

    store: str
    """A folder that all nodes of the cluster reach."""
    until: str = "serve"
    dev: bool = False
    """Run the submitter's working tree, not what the cluster has installed."""
    image: str | None = None
    """Run in this container; None: on the nodes themselves."""
    requirements: tuple[str, ...] = ()
    """Pinned packages, wheels and files of such, that the job's processes get besides."""
    environment: tuple[str, ...] = ()
    """NAMES of environment variables that must be set on the cluster."""

    def to_json(self) -> str:
        """As it stands in the job's metadata."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """The same settings again."""
        data: dict[str, Any] = json.loads(text)
        lists: dict[str, Any] = {name: tuple(value) for name, value in data.items() if isinstance(value, list)}
        return cls(**{**data, **lists})


def job_identity(job: JobSpec, settings: Settings) -> str:
    """What makes two submissions the same: job, store, and how far it goes."""
    content = {"job": job.model_dump(mode="json"), "store": settings.store, "until": settings.until}
    return content_hash(content)


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A job of ours on a cluster, as Ray tells of it."""

    id: str
    status: Status
    metadata: dict[str, str]
    started_at: float | None = None
    """As `time.time` counts; Ray's moment of the submission."""
    ended_at: float | None = None
    exit_code: int | None = None
    """Of the driver, once it has ended by itself."""
    message: str = ""
    error_type: str | None = None
    node_id: str | None = None
    node: str | None = None
    """The address of the machine of the driver."""

    @property
    def name(self) -> str:
        """The job's."""
        return self.metadata[MARK]

    @property
    def identity(self) -> str | None:
        """See `job_identity`."""
        return self.metadata.get("identity")

    @property
    def is_over(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self.status not in ("PENDING", "RUNNING")


def submission_of(told: dict[str, Any]) -> Submission | None:
    """What the dashboard says of a job; None of one that is not ours."""
    metadata = told.get("metadata") or {}
    if MARK not in metadata or not told.get("submission_id"):
        return None
    agent = str(told.get("driver_agent_http_address") or "")
    return Submission(
        id=told["submission_id"],
        status=told["status"],
        metadata=metadata,
        started_at=_seconds(told.get("start_time")),
        ended_at=_seconds(told.get("end_time")),
        exit_code=told.get("driver_exit_code"),
        message=told.get("message") or "",
        error_type=told.get("error_type"),
        node_id=told.get("driver_node_id"),
        node=agent.removeprefix("http://").rpartition(":")[0] or None,
    )


def _seconds(milliseconds: int | None) -> float | None:
    return milliseconds / 1000 if milliseconds else None
