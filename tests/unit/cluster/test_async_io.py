"""What offload to NVMe is compiled with is looked for on the machine itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from orchestrator.cluster.async_io import missing


def path_with(folder: Path, **programs: int) -> str:
    """A PATH of programs that end with these codes alone."""
    for name, code in programs.items():
        program = folder / name.replace("cxx", "c++")
        program.write_text(f"#!/bin/sh\nexit {code}\n")
        program.chmod(0o755)
    return str(folder)


@pytest.mark.parametrize(
    ("programs", "named"),
    [
        ({"ninja": 0}, "g++"),
        ({"cxx": 0}, "ninja"),
        ({"cxx": 1, "ninja": 0}, "libaio-dev (apt)"),
        ({"cxx": 0, "ninja": 0}, None),
    ],
)
def test_what_is_missing_is_named_by_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: dict[str, int], named: str | None
) -> None:
    monkeypatch.setenv("PATH", path_with(tmp_path, **programs))
    found = missing()
    assert found is None if named is None else named in str(found)


@pytest.mark.skipif(not (shutil.which("c++") and shutil.which("ninja")), reason="no compiler here")
def test_it_looks_at_the_real_library() -> None:
    """A machine has the header and the library, or lacks the package that has both."""
    assert (missing() is None) == Path("/usr/include/libaio.h").is_file()
