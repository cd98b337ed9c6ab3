"""The tables, in SQL that SQLite and PostgreSQL read alike.

Moments are seconds since 1970, money is whole billionths of the price list's unit: sums stay exact.
"""

from __future__ import annotations

FORMAT = 1
"""Changes with the tables; another format is refused."""

TABLES = (
    "CREATE TABLE IF NOT EXISTS slipway_format (format BIGINT PRIMARY KEY)",
    # The four counters after the limits belong to `ledger`: they hold what a sum over the admissions would give.
    """CREATE TABLE IF NOT EXISTS slipway_keys (
        id TEXT PRIMARY KEY, hash TEXT NOT NULL UNIQUE, name TEXT NOT NULL, scopes TEXT NOT NULL, models TEXT,
        created_at DOUBLE PRECISION NOT NULL, expires_at DOUBLE PRECISION, revoked_at DOUBLE PRECISION,
        rpm BIGINT, tpm BIGINT, budget_nano BIGINT,
        window_requests BIGINT NOT NULL DEFAULT 0, window_tokens BIGINT NOT NULL DEFAULT 0,
        spent_nano BIGINT NOT NULL DEFAULT 0, reserved_nano BIGINT NOT NULL DEFAULT 0)""",
    # A row lives while its request is under way (is_open) or in the window of its key's limits (is_counted).
    """CREATE TABLE IF NOT EXISTS slipway_admissions (
        id BIGINT PRIMARY KEY, key_id TEXT NOT NULL, at DOUBLE PRECISION NOT NULL,
        model TEXT NOT NULL, version TEXT NOT NULL, tokens BIGINT NOT NULL, prompt_tokens BIGINT NOT NULL,
        reserved_nano BIGINT NOT NULL, is_open BIGINT NOT NULL, is_counted BIGINT NOT NULL)""",
    """CREATE INDEX IF NOT EXISTS slipway_admissions_window
        ON slipway_admissions (key_id, at, id) WHERE is_counted = 1""",
    "CREATE INDEX IF NOT EXISTS slipway_admissions_open ON slipway_admissions (at) WHERE is_open = 1",
    # key_id is empty for requests without a key; cost_nano is null while the model has no price.
    """CREATE TABLE IF NOT EXISTS slipway_usage (
        key_id TEXT NOT NULL, model TEXT NOT NULL, version TEXT NOT NULL, day TEXT NOT NULL,
        requests BIGINT NOT NULL, failed BIGINT NOT NULL, prompt_tokens BIGINT NOT NULL,
        completion_tokens BIGINT NOT NULL, cost_nano BIGINT, PRIMARY KEY (key_id, model, version, day))""",
    """CREATE TABLE IF NOT EXISTS slipway_answers (
        id TEXT PRIMARY KEY, key_id TEXT NOT NULL, model TEXT NOT NULL, version TEXT NOT NULL,
        at DOUBLE PRECISION NOT NULL, texts TEXT)""",
    "CREATE INDEX IF NOT EXISTS slipway_answers_at ON slipway_answers (at)",
    """CREATE TABLE IF NOT EXISTS slipway_feedback (
        id TEXT NOT NULL, choice BIGINT NOT NULL, at DOUBLE PRECISION NOT NULL, rating TEXT NOT NULL,
        correction TEXT, comment TEXT, consent BIGINT NOT NULL, PRIMARY KEY (id, choice))""",
    "CREATE INDEX IF NOT EXISTS slipway_feedback_at ON slipway_feedback (at)",
)
