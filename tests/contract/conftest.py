"""The command as a user starts it: a process of its own, without the user's settings."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
Slipway = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def slipway(tmp_path_factory: pytest.TempPathFactory) -> Slipway:
    """Runs `slipway` with arguments, in the repository, on a store of its own."""
    script = Path(sys.executable).with_name("slipway")
    command = [str(script)] if script.exists() else [sys.executable, "-m", "orchestrator.cli"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLIPWAY_", "WANDB_"))}
    environ = {**kept, "SLIPWAY_STORE": str(tmp_path_factory.mktemp("store")), "COLUMNS": "200"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *arguments], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False
        )

    return run


@pytest.fixture(scope="session")
def modules_after() -> Callable[[str], set[str]]:
    """The top-level modules that a process has loaded after some code."""

    def loaded(code: str) -> set[str]:
        program = f"{code}\nimport sys\nprint('\\n' + ' '.join({{name.split('.')[0] for name in sys.modules}}))"
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
        return set(done.stdout.splitlines()[-1].split())

    return loaded
