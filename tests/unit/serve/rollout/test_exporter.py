"""A process that stands ready exports run after run, says what is wrong with one, and is replaced where it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from evaluation_fixtures import job_file, lay_out_checkpoint, lay_out_dataset, lay_out_run

from orchestrator.errors import ServeError
from orchestrator.export.prove import load_proven
from orchestrator.job_file import load_job
from orchestrator.serve.rollout.exporter import Exporter
from orchestrator.store import Store


@pytest.fixture
def run(tmp_path: Path) -> Path:
    job, store = load_job(job_file(tmp_path)), Store(tmp_path / "store")
    folder: Path = lay_out_run(store, job, lay_out_dataset(store, job))
    return folder


def children() -> list[int]:
    """Processes of this one that export."""
    asked = ["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())]
    listed = subprocess.run(asked, capture_output=True, text=True, check=True)
    return [int(line.split()[0]) for line in listed.stdout.splitlines() if "orchestrator.export.ready" in line]


def test_it_exports_again_and_again_and_says_what_is_wrong(run: Path, tmp_path: Path) -> None:
    with Exporter() as exporter:
        (child,) = children()
        made = exporter(run)
        assert made == run / "export" / "step-00000020"
        assert load_proven(made).manifest.step == 20
        (run / "empty").mkdir()
        with pytest.raises(ServeError, match=r"empty could not be exported: .*job\.yaml"):
            exporter(run / "empty")
        lay_out_checkpoint(run, 30, load_job(tmp_path / "tiny.yaml").model.config(300))
        assert exporter(run) == run / "export" / "step-00000030"
        assert children() == [child]
        os.kill(child, signal.SIGKILL)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        assert exporter(run) == run / "export" / "step-00000030"
    assert children() == []


def test_one_that_is_killed_in_the_middle_is_said(run: Path) -> None:
    with Exporter() as exporter:
        (child,) = children()
        os.kill(child, signal.SIGSTOP)
        os.kill(child, signal.SIGKILL)
        with pytest.raises(ServeError, match=rf"the export of {run.name} ended with code -9"):
            exporter(run)


def test_it_ends_with_whoever_asks() -> None:
    asks = (
        f"import os; from {Exporter.__module__} import Exporter; print(Exporter()._child.pid, flush=True); os._exit(0)"
    )
    pid = int(subprocess.run([sys.executable, "-c", asks], capture_output=True, text=True, check=True).stdout)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, "it lives on"
        time.sleep(0.05)
