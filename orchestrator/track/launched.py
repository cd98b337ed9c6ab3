"""Who launches an attempt, from where, and by which submission: what `events.jsonl` says of it."""

from __future__ import annotations

import getpass
import json
import socket
from collections.abc import Mapping

_RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray's, of the driver of a job: the job's metadata among it."""


def launched_by(environ: Mapping[str, str]) -> dict[str, str | None]:
    """`by` (user@machine of whoever typed the command), `host` (where the driver is), `submission` (a Ray job's id).

    Nothing else of the environment is written: it may hold secrets.
    """
    host = socket.gethostname()
    metadata = _metadata(environ)
    by = metadata.get("user")
    submission = metadata.get("job_submission_id")
    return {
        "by": str(by) if by else f"{_user()}@{host}",
        "host": host,
        "submission": str(submission) if submission else None,
    }


def _metadata(environ: Mapping[str, str]) -> Mapping[str, object]:
    try:
        found = json.loads(environ[_RAY_JOB])["metadata"]
    except (KeyError, ValueError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a number without a name, as containers have it
        return "unknown"
