"""Packages of one job: pinned, and laid out as a folder."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from orchestrator.cluster.jobs.requirements import check_pinned, install, this_platform
from orchestrator.errors import JobError

INFO = "tinyextra-1.0.dist-info"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "tinyextra-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("tinyextra.py", "WORD = 'here'\n")
        file.writestr(
            f"{INFO}/METADATA", "Metadata-Version: 2.1\nName: tinyextra\nVersion: 1.0\nRequires-Dist: absent\n"
        )
        file.writestr(f"{INFO}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{INFO}/RECORD", "")
    return path


def test_a_wheel_becomes_a_folder_to_import_from(wheel: Path, tmp_path: Path) -> None:
    install([str(wheel)], tmp_path / "packages")
    assert not list((tmp_path / "packages").rglob("*.pyc"))
    code = "import tinyextra; print(tinyextra.WORD)"
    around = {"PYTHONPATH": str(tmp_path / "packages")}
    call = [sys.executable, "-c", code]
    done = subprocess.run(call, capture_output=True, text=True, env=around, check=True)
    assert done.stdout == "here\n"


@pytest.mark.parametrize("asked", ["numpy", "numpy>=1", "numpy==1.*", "git+https://x/y", "absent-1.0.whl", "-e ."])
def test_what_is_not_pinned_is_refused(asked: str) -> None:
    with pytest.raises(JobError, match="no pinned package"):
        check_pinned([asked])


@pytest.mark.parametrize("asked", ["numpy==1.26.4", "a.b-c[x,y]==2.0rc1", "numpy == 1.0 ; python_version > '3.9'"])
def test_what_is_pinned_is_taken(asked: str) -> None:
    check_pinned([asked])


def test_a_file_is_looked_at_line_by_line(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text(
        "# made by a tool\nnumpy==1.26.4 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n\nsix==1.17 # via x\n"
    )
    check_pinned([str(lock)])
    lock.write_text("numpy==1.26.4\nsix>=1\n")
    with pytest.raises(JobError, match=r"in .*lock\.txt, 'six>=1'"):
        check_pinned([str(lock)])


def test_what_is_not_to_be_had_says_so(tmp_path: Path) -> None:
    broken = tmp_path / "broken-1.0-py3-none-any.whl"
    broken.write_bytes(b"no zip")
    with pytest.raises(JobError, match="not to be had") as raised:
        install([str(broken)], tmp_path / "packages")
    assert "broken" in str(raised.value)


def test_the_platform_is_this_one() -> None:
    assert this_platform().startswith(f"{sys.version_info.major}.{sys.version_info.minor} linux")
