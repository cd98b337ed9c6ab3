"""How people rate a version while it is watched: what `/v1/feedback` has left in the accounts."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

from orchestrator.serve.accounts import feedback
from orchestrator.serve.accounts.database import Database
from orchestrator.serve.accounts.dialects import AccountsError
from orchestrator.serve.accounts.place import accounts_url
from orchestrator.serve.deployment.table import Entry
from orchestrator.serve.rollout.decide import UNRATED, Thumbs

_log = logging.getLogger(__name__)


class ThumbsOf:
    """Reads the accounts at `url`, or where SLIPWAY_ACCOUNTS or the state folder has them; connects when it is asked.

    In a thread of its own: each rollout has another one, and a connection belongs to its thread.
    """

    def __init__(self, url: str | None) -> None:
        self._database = Database(accounts_url(url))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="thumbs")

    def __call__(self, entry: Entry, last_s: float) -> Thumbs:
        """Of one version, given in the last seconds. Accounts that cannot be read tell of none: that is no verdict."""
        return self._thread.submit(self._read, entry, last_s).result()

    def close(self) -> None:
        """Let go of the accounts."""
        self._thread.shutdown()
        self._database.close()

    def _read(self, entry: Entry, last_s: float) -> Thumbs:
        try:
            with self._database.reading() as session:
                since = session.now() - last_s
                up, down = feedback.thumbs(session, model=entry.model, version=entry.version, since=since)
        except AccountsError as error:
            _log.warning("ratings of %s %s cannot be read: %s", entry.model, entry.version, error)
            return UNRATED
        return Thumbs(up=up, down=down)
