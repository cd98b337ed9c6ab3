"""Workers of a Ray of our own are copies of a template: they work, are missed when they die, and end with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster import template
from orchestrator.cluster.connect import Session
from orchestrator.presence import process_of


class Member:
    """Of which this test asks what it is."""

    def facts(self) -> dict[str, Any]:
        """What tells a copy from another process."""
        parent = Path(f"/proc/{os.getppid()}/cmdline").read_text()
        return {"pid": os.getpid(), "parent": parent, "wave": "wave" in sys.modules, "told": os.environ.get("TOLD")}


def test_workers_are_copies_and_one_that_dies_is_missed_alone(session: Session) -> None:
    session.connect()
    import ray

    environment = template.environment("colorsys", template="colorsys,wave")
    environment["env_vars"]["TOLD"] = "this"
    members = [ray.remote(num_cpus=0, runtime_env=environment)(Member).remote() for _ in range(3)]
    facts = ray.get([member.facts.remote() for member in members])
    assert all("template_process" in one["parent"] and one["wave"] and one["told"] == "this" for one in facts)
    assert len({one["pid"] for one in facts}) == 3
    os.kill(facts[0]["pid"], signal.SIGKILL)
    with pytest.raises(ray.exceptions.ActorDiedError):
        ray.get(members[0].facts.remote())
    assert ray.get(members[1].facts.remote())["pid"] == facts[1]["pid"]
    for member in members[1:]:
        ray.kill(member)


def test_they_end_with_their_ray() -> None:
    script = """
        import json, os
        from orchestrator.cluster import template
        from orchestrator.cluster.connect import connected
        with connected():
            import ray
            copy = ray.remote(num_cpus=0, runtime_env=template.environment("colorsys", template="colorsys"))
            print(json.dumps(ray.get(copy(lambda: [os.getpid(), os.getppid()]).remote())))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True, timeout=120
    )
    assert not any(process_of(pid) for pid in json.loads(done.stdout.splitlines()[-1]))
