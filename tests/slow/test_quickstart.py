"""The quickstart as it is: what `make demo` runs, within the time it promises."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest
from harness import command, environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
LIMIT_S = 300


def test_the_quickstart_goes_all_the_way_in_five_minutes(tmp_path: Path) -> None:
    began_at = time.monotonic()
    args = command("run", ROOT / "jobs" / "quickstart.yaml", "--store", tmp_path, "--exit", "--json")
    done = subprocess.run(args, capture_output=True, text=True, timeout=800, env=environment(), check=False)
    took_s = time.monotonic() - began_at
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert set(document["stages"].values()) == {"done"}
    assert document["validation_loss"] < 6.0  # log(4096) = 8.3 is what an untrained model has
    assert len(document["samples"]) == 3
    assert took_s < LIMIT_S
