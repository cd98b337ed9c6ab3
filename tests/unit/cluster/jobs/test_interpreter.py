from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.cluster.jobs.interpreter import on_the_head

_SAY = "-c 'import sys; print(\"said by\", sys.executable)'"


def typed(line: str, **variables: str) -> str:
    found = subprocess.run(line, shell=True, env=os.environ | variables, capture_output=True, text=True, check=True)
    return found.stdout.strip()


def test_ours_is_taken_where_it_is_there() -> None:
    assert typed(on_the_head(_SAY)) == f"said by {sys.executable}"


def test_that_of_the_path_is_taken_where_ours_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "python").write_text("#!/bin/sh\necho of the path\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nowhere with a space"))
    assert typed(on_the_head(_SAY), PATH=f"{tmp_path}:{os.environ['PATH']}") == "of the path"
