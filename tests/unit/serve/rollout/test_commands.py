"""What a service is told through its socket becomes a rollout: as its options have it, or as its job does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.job import Canary, Serve
from orchestrator.serve.rollout.commands import Commands
from orchestrator.serve.rollout.controller import Asked, Tell

SHADOW = Canary(share=0.5, shadow=True, **{"for": "90s"})


class Remembering:
    """A controller that does nothing."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []

    def rollout(self, asked: Asked, tell: Tell) -> dict[str, Any]:
        self.asked.append(asked)
        return {"verdict": "promoted"}


@pytest.mark.parametrize(
    ("of_job", "given", "want"),
    [
        (None, None, (None, 120.0, False)),
        (SHADOW, None, (0.5, 90.0, True)),
        (SHADOW, Canary(), (0.05, 120.0, False)),
        (None, SHADOW, (0.5, 90.0, True)),
    ],
)
def test_a_rollout_is_tried_out_as_asked(of_job: Canary | None, given: Canary | None, want: tuple[Any, ...]) -> None:
    controller = Remembering()
    commands = Commands(controller, url="http://here")  # type: ignore[arg-type]
    request = {
        "command": "rollout",
        "export": "/exports/one",
        "model": "m",
        "settings": Serve(canary=of_job).model_dump(mode="json"),
        "canary": None if given is None else given.model_dump(mode="json"),
    }
    assert commands(request, lambda _: None) == {"url": "http://here", "verdict": "promoted"}
    (asked,) = controller.asked
    assert (asked.canary, asked.for_s, asked.shadow) == want
    assert (asked.export, asked.in_place) == (Path("/exports/one"), False)
