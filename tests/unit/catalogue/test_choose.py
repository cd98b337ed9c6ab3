"""Which runs `runs list` shows."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.catalogue.choose import STATES, Wanted, choose, moment
from orchestrator.errors import JobError

NOW = datetime(2026, 11, 20, 12, tzinfo=timezone.utc)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "state": st.sampled_from(STATES),
            "tags": st.lists(st.sampled_from("ab"), unique=True),
            "job": st.sampled_from(("x", "y", None)),
            "worked_at": st.integers(0, 20).map(lambda days: (NOW - timedelta(days=days)).isoformat()),
        }
    )
)


@given(
    ROWS,
    st.none() | st.sampled_from(STATES),
    st.none() | st.sampled_from("ab"),
    st.none() | st.sampled_from("xy"),
    st.none() | st.integers(1, 5),
)
def test_all_that_is_wanted_holds_and_nothing_else_is_left_out(
    rows: list[dict[str, object]], state: str | None, tag: str | None, job: str | None, limit: int | None
) -> None:
    since = NOW - timedelta(days=10)
    found = choose(rows, Wanted(state=state, tag=tag, job=job, since=since, limit=limit))
    wanted = [
        row
        for row in rows
        if state in (None, row["state"])
        and (tag is None or tag in str(row["tags"]))
        and job in (None, row["job"])
        and str(row["worked_at"]) >= since.isoformat()
    ]
    assert found == wanted[:limit]
    assert choose(rows, Wanted()) == rows


def test_moments() -> None:
    assert moment("90m", now=NOW) == datetime(2026, 11, 20, 10, 30, tzinfo=timezone.utc)
    assert moment("2w", now=NOW) == datetime(2026, 11, 6, 12, tzinfo=timezone.utc)
    assert moment("2026-11-01", now=NOW) == datetime(2026, 11, 1, tzinfo=timezone.utc)
    assert moment("2026-11-01T10:00:00+02:00", now=NOW) == datetime(2026, 11, 1, 8, tzinfo=timezone.utc)
    for wrong in ("yesterday", "3y", "-1d", ""):
        with pytest.raises(JobError, match="is no time"):
            moment(wrong, now=NOW)
    with pytest.raises(JobError, match="is no state"):
        choose([], Wanted(state="lost"))
