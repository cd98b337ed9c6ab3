"""What a live service can be told through its socket: rollout, rollback, follow, status, stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.errors import JobError
from orchestrator.job import Canary, Serve
from orchestrator.serve.rollout.controller import Asked, Controller, Tell
from orchestrator.serve.rollout.follow import Follower


def tried_out(asked: Asked, canary: Canary | None) -> Asked:
    """A rollout as a job's `serve.canary` has it."""
    if canary is None:
        return asked
    return replace(asked, canary=canary.share, for_s=canary.for_s, shadow=canary.shadow)


class Commands:
    """Answers the requests of `host.control`."""

    def __init__(self, controller: Controller, *, url: str) -> None:
        self._controller = controller
        self._url = url
        self._following: dict[str, Follower] = {}
        self._verbs: dict[str, Callable[[dict[str, Any], Tell], dict[str, Any]]] = {
            "rollout": self._rollout,
            "rollback": self._rollback,
            "status": self._status,
            "stop": self._stop,
        }

    def __call__(self, request: dict[str, Any], tell: Tell) -> dict[str, Any]:
        """Do what is asked; returns the result.

        Raises:
            SlipwayError: it could not be done.
        """
        verb = self._verbs.get(request.get("command", ""))
        if verb is None:
            raise JobError(f"a service knows no command {request.get('command')!r}", fix=f"one of {list(self._verbs)}")
        return {"url": self._url, **verb(request, tell)}

    def follow(self, run: Path, model: str, settings: Serve, *, served: Path) -> None:
        """Bring checkpoints of a run newer than that of the export `served` as they come, until the service ends."""
        if model in self._following:
            self._following.pop(model).stop()

        def bring(export: Path) -> None:
            asked = Asked(export=export, model=model, settings=settings, in_place=settings.canary is None)
            self._controller.rollout(tried_out(asked, settings.canary), lambda _: None, waits=True)

        self._following[model] = Follower(run, bring, served=served)

    def _rollout(self, request: dict[str, Any], tell: Tell) -> dict[str, Any]:
        settings = Serve.model_validate(request["settings"])
        asked = Asked(
            export=Path(request["export"]),
            model=request["model"],
            settings=settings,
            in_place=bool(request.get("in_place")),
        )
        own = request.get("canary")
        asked = tried_out(asked, settings.canary if own is None else Canary.model_validate(own))
        done = self._controller.rollout(asked, tell)
        if request.get("follow"):
            self.follow(Path(request["follow"]), asked.model, asked.settings, served=asked.export)
        return done

    def _rollback(self, request: dict[str, Any], tell: Tell) -> dict[str, Any]:
        return self._controller.rollback(request["model"], tell)

    def _status(self, request: dict[str, Any], tell: Tell) -> dict[str, Any]:
        return {"versions": self._controller.status()}

    def _stop(self, request: dict[str, Any], tell: Tell) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGTERM)
        return {"stopping": True}
