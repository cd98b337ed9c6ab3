"""The cluster's dashboard over HTTP, with the token: all that a machine outside of the cluster needs of it."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from orchestrator.cluster.connect import prepare_environment
from orchestrator.cluster.jobs.values import Submission, submission_of
from orchestrator.cluster.token import has_token, token_path
from orchestrator.errors import CapacityError, JobError

_ANSWER_LIMIT_S = 60.0
_AGENT_LIMIT_S = 30.0
_REDIRECTS = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Ray's client goes where these say, whatever address it was given."""
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
_FIX = "give the dashboard's URL, such as http://127.0.0.1:8265; ~/.ray/auth_token must hold its token"

_TOKEN_FIX = "have the cluster's ~/.ray/auth_token here, mode 0600, or name it in RAY_AUTH_TOKEN_PATH"


class AlreadyThereError(Exception):
    """A submission of this name was made before."""


class JobsClient:
    """Ray's Jobs API at a dashboard.

    Every method raises CapacityError where no dashboard answers, or where it does not take our token; the constructor
    also where there is none here.
    """

    def __init__(self, address: str) -> None:
        if os.environ.get("RAY_AUTH_MODE", "token") == "token" and not has_token():
            raise CapacityError(
                f"there is no token here for the cluster at {address}: no {token_path()}", fix=_TOKEN_FIX
            )
        prepare_environment()
        for name in _REDIRECTS:
            os.environ.pop(name, None)
        self.address = address
        with self._told():
            self._ray = _ray_client(address)

    def submissions(self) -> list[Submission]:
        """Every job of ours that the cluster knows, oldest first."""
        found = [submission_of(told) for told in self.request("GET", "/api/jobs/").json()]
        return sorted((one for one in found if one is not None), key=lambda one: (one.started_at or 0.0, one.id))

    def submission(self, id: str) -> Submission:
        """One of them.

        Raises:
            JobError: there is no such job of ours.
        """
        answer = self.request("GET", f"/api/jobs/{id}", may_be_absent=True)
        found = submission_of(answer.json()) if answer.ok else None
        if found is None:
            raise JobError(
                f"there is no job {id} at {self.address}", fix="`slipway jobs list` has those that there are"
            )
        return found

    def upload(self, folder: str) -> str:
        """Bring a folder to the cluster, unless it is there; the URI by which nodes fetch it, once for each content."""
        with self._told():
            return str(self._ray._upload_package_if_needed(folder, include_gitignore=False))

    def submit(self, *, id: str, command: str, runtime_env: dict[str, Any], metadata: dict[str, str]) -> None:
        """Hand a job over; a head that has just started has no agent yet for a while.

        Raises:
            AlreadyThereError: there is a submission of this id.
        """
        deadline = time.monotonic() + _AGENT_LIMIT_S
        while True:
            try:
                with self._told():
                    self._ray.submit_job(
                        entrypoint=command, submission_id=id, runtime_env=runtime_env, metadata=metadata
                    )
            except CapacityError as error:
                if "already exists" in error.message:
                    raise AlreadyThereError from None
                if "No available agent" not in error.message or time.monotonic() > deadline:
                    raise
                time.sleep(1.0)
            else:
                return

    def stop(self, id: str) -> None:
        """Have a job's driver told to end: SIGTERM; returns at once."""
        with self._told():
            self._ray.stop_job(id)

    def log(self, submission: Submission, *, lines: int | None = None) -> str:
        """What a job has written, or its last lines; nothing where it has not begun, or where its node is gone."""
        if submission.node_id is None:
            return ""
        if lines is not None:
            query = f"node_id={submission.node_id}&filename=job-driver-{submission.id}.log&lines={lines}"
            answer = self.request("GET", f"/api/v0/logs/file?{query}", may_be_absent=True)
            if answer.ok:
                return str(answer.text)
        # It has no more than the whole log: of a job that runs for weeks that is much.
        answer = self.request("GET", f"/api/jobs/{submission.id}/logs", may_be_absent=True)
        return str(answer.json()["logs"]) if answer.ok else ""

    def follow(self, id: str) -> AsyncIterator[str]:
        """The log from its beginning, in pieces, until the job has ended; RuntimeError where the connection breaks."""
        pieces: AsyncIterator[str] = self._ray.tail_job_logs(id)
        return pieces

    def request(self, method: str, path: str, *, may_be_absent: bool = False) -> Any:
        """A request to the dashboard; `requests`' answer, which is an error's only where it `may_be_absent`."""
        with self._told():
            answer = self._ray._do_request(method, path)
            if not answer.ok and not may_be_absent:
                raise RuntimeError(f"{path} answers {answer.status_code}: {answer.text[:200]}")
        return answer

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Ray's errors, and those of HTTP, as ours."""
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            status = 403 if "Authentication failed" in str(error) else 401
            raise CapacityError(
                f"the cluster at {self.address} does not take our token ({status})",
                fix=_TOKEN_FIX,
            ) from None
        except (OSError, RuntimeError, ValueError) as error:  # OSError: those of `requests`
            # Of a traceback of the cluster's the last line says what it was; Ray ends its own texts with a point.
            lines = [line for line in str(error).splitlines() if line.strip(" .")] or [type(error).__name__]
            said = lines[-1][:500]
            raise CapacityError(f"the Ray dashboard at {self.address} did not do it: {said}", fix=_FIX) from None


def _ray_client(address: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)

    class Client(JobSubmissionClient):
        """Ray's, which would wait for an answer for ever."""

        def _do_request(self, method: str, endpoint: str, **more: Any) -> Any:
            return super()._do_request(method, endpoint, **{"timeout": _ANSWER_LIMIT_S, **more})

    return Client(address)
