"""Settings and parts that tests of many rooms share."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Result, command, environment
from hypothesis import settings

from orchestrator.job import JobSpec
from orchestrator.job_file import load_job

# The same examples everywhere: a test that is red for one person is red for all. Shared cores make no deadline fair.
settings.register_profile("slipway", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("slipway")

TINY_JOB = """\
name: tiny
data:
  sources:
    - path: docs/*.txt
  split: {validation: 0.1, test: 0.1}
model: {layers: 2, width: 32, heads: 4, context: 16}
train:
  steps: 10
  batch_tokens: 128
  precision: fp32
"""


@pytest.fixture(scope="session", autouse=True)
def _own_state(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Services, keys and usage of the tests are none of the developer's: also not for what a Ray starts later."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="session")
def tiny_job(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., JobSpec]:
    """Makes a small valid job; its arguments are what `--set` takes."""
    path = tmp_path_factory.mktemp("jobs") / "tiny.yaml"
    path.write_text(TINY_JOB, encoding="utf-8")

    def make(*overrides: str) -> JobSpec:
        return load_job(path, overrides)

    return make


@pytest.fixture(scope="session")
def slipway() -> Callable[..., Result]:
    """The command line in a process of its own."""

    def call(*args: object, timeout_s: float = 240, cwd: Path | None = None, **env: str) -> Result:
        done = subprocess.run(
            command(*args),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=environment(**env),
            cwd=cwd,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return call
