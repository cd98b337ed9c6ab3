"""Ray's access token: created for the owner alone, before Ray would write it for everybody. Imports no Ray."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

OWNER_ONLY = 0o600


def token_path() -> Path:
    """Where Ray looks for the token: RAY_AUTH_TOKEN_PATH, else `~/.ray/auth_token`."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def ensure_token() -> Path | None:
    """Create the token file with mode 0600, or tighten the one there; None where RAY_AUTH_TOKEN holds it."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return None
    path = token_path()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_ONLY)
    except FileExistsError:
        if is_exposed(path):
            path.chmod(OWNER_ONLY)
        return path
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
    return path


def has_token() -> bool:
    """Whether there is a token here; one that is made now is none that a cluster elsewhere knows."""
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or token_path().exists()


def is_exposed(path: Path) -> bool:
    """Whether anybody but the owner may read the file."""
    return bool(stat.S_IMODE(path.stat().st_mode) & (stat.S_IRWXG | stat.S_IRWXO))
