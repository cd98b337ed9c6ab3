"""Pinned packages of a job, laid out here as a folder that comes along: no other job sees it.

Not Ray's own `pip` or `uv`: where Ray runs in a virtual environment, as ours does, these copy the whole of it,
gigabytes, for each set of packages on each node, and each node then needs a package index.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from orchestrator.errors import JobError

_PINNED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(\[[\w,.-]+\])?\s*==\s*[^\s*,;]+(\s*;.*)?")
_INSTALL_LIMIT_S = 900.0


def this_platform() -> str:
    """What wheels are made for: `3.11 linux-x86_64`. Those who use a folder must be the same as those who made it."""
    return f"{'.'.join(platform.python_version_tuple()[:2])} {sysconfig.get_platform()}"


def check_pinned(asked: Sequence[str]) -> None:
    """Whether each is a wheel, NAME==VERSION, or a file of such lines; nothing is installed.

    Raises:
        JobError: names the one that is not.
    """
    for one in asked:
        path = Path(one)
        if path.suffix == ".whl" and path.is_file():
            continue
        lines = _lines(path) if path.is_file() else [one]
        for line in lines:
            if not _PINNED.fullmatch(line):
                where = f"in {path}, " if path.is_file() else ""
                raise JobError(
                    f"--requirement: {where}{line!r} is no pinned package, and no wheel that is there",
                    fix="write NAME==VERSION, the path of a .whl, or a file of such lines (uv pip compile makes one)",
                )


def install(asked: Sequence[str], into: Path) -> None:
    """Lay the packages out in a folder: what is named, and no dependency that is not.

    Raises:
        JobError: one is not pinned, or is not to be had.
    """
    check_pinned(asked)
    words: list[str] = []
    for one in asked:
        is_list = Path(one).is_file() and Path(one).suffix != ".whl"
        words += ["-r", one] if is_list else [one]
    # Not compiled: such files hold the moment, and the same packages would never be the same folder.
    call = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    call += ["--no-compile", "--target", str(into), *words]
    try:
        done = subprocess.run(call, capture_output=True, text=True, timeout=_INSTALL_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        raise JobError(
            f"the packages of --requirement were not there after {_INSTALL_LIMIT_S:.0f} s", fix="download them first"
        ) from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise JobError(
            f"the packages of --requirement are not to be had: {said[-1] if said else 'pip says nothing'}",
            fix=f"try it by hand: {Path(sys.executable).name} -m pip install --no-deps {' '.join(words)}",
        )


def _lines(path: Path) -> list[str]:
    """The requirements of a file, without comments, hashes, and lines that are broken in two."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = (re.sub(r"\s--hash=\S+", "", line.partition(" #")[0]).strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]
