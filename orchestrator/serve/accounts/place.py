"""Where accounts lie: `accounts.sqlite` and `audit.jsonl` in the state folder, unless SLIPWAY_ACCOUNTS names a URL."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "SLIPWAY_ACCOUNTS"


def state_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """`${XDG_STATE_HOME:-~/.local/state}/slipway`, made for the owner alone if it is not there."""
    base = environment.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    path = Path(base) / "slipway"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)
    return path


def accounts_url(given: str | None = None, environment: Mapping[str, str] = os.environ) -> str:
    """What was given, else SLIPWAY_ACCOUNTS, else the file in the state folder."""
    return given or environment.get(VARIABLE) or str(state_folder(environment) / "accounts.sqlite")


def audit_path(environment: Mapping[str, str] = os.environ) -> Path:
    """The audit log of this machine."""
    return state_folder(environment) / "audit.jsonl"
