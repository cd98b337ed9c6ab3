"""Which runs are listed. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from orchestrator.catalogue.tables import Row
from orchestrator.errors import JobError

STATES = ("prepared", "started", "trained", "exported", "unreadable")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_AGO = re.compile(r"(\d{1,6})([mhdw])")


@dataclass(frozen=True)
class Wanted:
    """What a run has to be; None: anything."""

    state: str | None = None
    tag: str | None = None
    job: str | None = None
    since: datetime | None = None
    limit: int | None = None


def choose(rows: Sequence[Row], wanted: Wanted) -> list[Row]:
    """The rows that are wanted, in their order.

    Raises:
        JobError: there is no such state.
    """
    if wanted.state is not None and wanted.state not in STATES:
        raise JobError(f"--state {wanted.state!r} is no state of a run", fix=f"one of {', '.join(STATES)}")
    found = [
        row
        for row in rows
        if (wanted.state is None or row["state"] == wanted.state)
        and (wanted.tag is None or wanted.tag in row["tags"])
        and (wanted.job is None or row["job"] == wanted.job)
        and (wanted.since is None or datetime.fromisoformat(row["worked_at"]) >= wanted.since)
    ]
    return found[: wanted.limit]


def moment(text: str, *, now: datetime) -> datetime:
    """`2d`, `12h`, `30m`, `1w` ago, or a date or time as ISO 8601 writes it; without a zone it is of `now`'s.

    Raises:
        JobError: it is neither.
    """
    if ago := _AGO.fullmatch(text):
        return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise JobError(f"--since {text!r} is no time", fix="write 12h, 7d, or a date such as 2026-11-01") from None
    return found if found.tzinfo else found.replace(tzinfo=now.tzinfo or timezone.utc)
