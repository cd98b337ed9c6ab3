"""What a submitted job begins with on the cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from orchestrator.cluster.jobs import drive
from orchestrator.cluster.jobs.requirements import this_platform
from orchestrator.errors import JobError

BASE = ("--store", "/nowhere", "--until", "train")


def asked(*words: str) -> object:
    return drive._parser().parse_args([*BASE, *words])


def test_the_same_version_and_platform_pass() -> None:
    drive.refuse(asked("--version", version("slipway"), "--platform", this_platform()), {})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--version", "9.9.9"), "submitted by slipway 9.9.9"),
        (("--platform", "2.7 linux-m68k"), "for Python 2.7 linux-m68k"),
        (("--need", "THERE", "--need", "ABSENT", "--need", "EMPTY"), "needs ABSENT, EMPTY"),
    ],
)
def test_what_cannot_work_is_refused_with_the_way_out(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(JobError, match=said) as raised:
        drive.refuse(asked(*words), {"THERE": "1", "EMPTY": ""})  # type: ignore[arg-type]
    assert raised.value.fix


def test_another_commit_is_told_and_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drive, "code_commit", lambda: "b" * 40)
    drive.refuse(asked("--commit", "a" * 40), {})  # type: ignore[arg-type]
    assert "submit --dev" in capsys.readouterr().err


def test_a_job_without_a_folder_comes_from_the_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = json.dumps({"metadata": {"job": "name: x\n"}})
    assert drive._job_file({"RAY_JOB_CONFIG_JSON_ENV_VAR": config}).read_text() == "name: x\n"
    (tmp_path / "job.yaml").write_text("name: y\n")
    assert drive._job_file({}) == Path("job.yaml")


def test_a_signal_s_end_is_told_apart_from_want_of_memory() -> None:
    assert "from outside (SIGKILL)" in drive.last_words(9, out_of_memory=False)
    assert "want of memory" in drive.last_words(9, out_of_memory=True)


def test_the_exit_code_is_the_driver_s(tmp_path: Path) -> None:
    """A job file that is wrong: the driver ends with 2, and says why."""
    (tmp_path / "job.yaml").write_text("nome: x\n")
    call = [sys.executable, "-m", "orchestrator.cluster.jobs.drive", *BASE]
    root = Path(drive.__file__).parents[3]
    done = subprocess.run(
        call, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root)}, check=False
    )
    assert (done.returncode, "unknown key 'nome'" in done.stderr) == (2, True)
