"""What was used, by key, model, version and day."""

from __future__ import annotations

from typing import Any

from orchestrator.serve.accounts.database import Row, Session
from orchestrator.serve.accounts.keys import NANO
from orchestrator.serve.api.front import UsageRow


def used(session: Session, *, key_id: str | None = None, day: str | None = None) -> list[UsageRow]:
    """By day, key, model and version. Cost is null where the model had no price.

    Args:
        session: of the accounts.
        key_id: of this key alone; empty: of requests without a key.
        day: of this day alone, YYYY-MM-DD in UTC.
    """
    asked = [(name, value) for name, value in (("u.key_id", key_id), ("u.day", day)) if value is not None]
    where = f" WHERE {' AND '.join(f'{name} = ?' for name, _ in asked)}" if asked else ""
    rows = session.rows(
        "SELECT u.key_id, k.name, u.model, u.version, u.day, u.requests, u.prompt_tokens,"
        f" u.completion_tokens, u.cost_nano FROM slipway_usage u LEFT JOIN slipway_keys k ON k.id = u.key_id{where}"
        " ORDER BY u.day, u.key_id, u.model, u.version",
        *(value for _, value in asked),
    )
    return [_row(row) for row in rows]


def _row(row: Row) -> UsageRow:
    key_id, name, model, version, day, requests, prompt_tokens, completion_tokens, cost_nano = row
    return UsageRow(
        key_id=key_id or None,
        name=name or "no key",
        model=model,
        version=version,
        day=day,
        requests=requests,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        cost=None if cost_nano is None else cost_nano / NANO,
    )


def total(rows: list[UsageRow]) -> dict[str, Any]:
    """Sums over rows; the cost is null where none of them has one."""
    costs = [row.cost for row in rows if row.cost is not None]
    return {
        "requests": sum(row.requests for row in rows),
        "prompt_tokens": sum(row.prompt_tokens for row in rows),
        "completion_tokens": sum(row.completion_tokens for row in rows),
        "cost": sum(costs) if costs else None,
    }
