"""A worker's imports before it has work: those that its environment names."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from orchestrator.cluster import preload


@pytest.mark.parametrize(("named", "there"), [("", False), ("colorsys", True), ("json,colorsys", True)])
def test_what_the_environment_names_is_imported(named: str, there: bool) -> None:
    code = "import sys, orchestrator.cluster.preload; print('colorsys' in sys.modules, 'torch' in sys.modules)"
    environment = {**os.environ, preload.VARIABLE: named}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(there), "False"]
