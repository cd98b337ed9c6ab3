"""Which code runs here."""

from __future__ import annotations

import subprocess
from pathlib import Path

_GIT_LIMIT_S = 10.0


def code_commit() -> str | None:
    """The commit of the sources that run, with `-dirty` where files differ from it; None outside of a git work tree."""
    folder = Path(__file__).parent

    def git(*args: str) -> str:
        call = ["git", "-C", str(folder), *args]
        return subprocess.run(call, capture_output=True, text=True, check=True, timeout=_GIT_LIMIT_S).stdout.strip()

    try:
        if not git("ls-files", Path(__file__).name):  # installed into somebody else's repository
            return None
        changed = git("status", "--porcelain", "--untracked-files=no", ".")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
