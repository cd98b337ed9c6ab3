"""Which code runs here."""

from __future__ import annotations

import subprocess
from pathlib import Path

_GIT_LIMIT_S = 10.0
NOTE = "COMMIT"
"""Beside this file where the sources were sent somewhere without their history: the commit that they were at."""


def code_commit() -> str | None:
    """The commit of the sources that run, with `-dirty` where files differ from it; None where nobody knows."""
    folder = Path(__file__).parent

    def git(*args: str) -> str:
        call = ["git", "-C", str(folder), *args]
        return subprocess.run(call, capture_output=True, text=True, check=True, timeout=_GIT_LIMIT_S).stdout.strip()

    try:
        if not git("ls-files", Path(__file__).name):  # installed into somebody else's repository
            return _noted(folder)
        changed = git("status", "--porcelain", "--untracked-files=no", ".")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return _noted(folder)


def _noted(folder: Path) -> str | None:
    note = folder / NOTE
    return note.read_text(encoding="ascii").strip() if note.is_file() else None
