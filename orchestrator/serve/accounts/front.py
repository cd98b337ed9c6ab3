"""The accounts as the routes ask for them. Nothing waits in the event loop: the database has threads of its own."""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from orchestrator.serve.accounts import feedback as opinions
from orchestrator.serve.accounts import keys, ledger, refusals, usage
from orchestrator.serve.accounts.audit import AuditLog
from orchestrator.serve.accounts.database import Database
from orchestrator.serve.accounts.dialects import AccountsError
from orchestrator.serve.accounts.ledger import Admitted, Asked, Denied
from orchestrator.serve.accounts.limits import Lack
from orchestrator.serve.accounts.place import accounts_url, audit_path
from orchestrator.serve.accounts.prices import Prices
from orchestrator.serve.api.errors import ApiError
from orchestrator.serve.api.feedback import Feedback
from orchestrator.serve.api.front import Answered, Caller, Scope, UsageRow

T = TypeVar("T")
_SWEEP_S = 60.0
_log = logging.getLogger(__name__)
_MAX_SCRUBBING = 64
"""Answers whose texts wait to be scrubbed; more make their requests wait."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What a service wants of its accounts."""

    prices: Prices = field(default_factory=dict)
    store_prompts: bool = False
    """Keep prompts and completions, scrubbed, so that feedback can become training data."""


def open_accounts(policy: Policy, url: str | None = None) -> Accounts:
    """The accounts at `url`, or where SLIPWAY_ACCOUNTS or the state folder has them.

    Raises:
        AccountsError: there is nothing to be had.
    """
    accounts = Accounts(Database(accounts_url(url)), AuditLog(audit_path()), policy)
    accounts.has_keys()
    return accounts


class Accounts:
    """`Front`, over a database and an audit log. Every request reads its key anew: what is revoked is out at once."""

    def __init__(self, database: Database, audit: AuditLog, policy: Policy) -> None:
        self._database = database
        self._audit = audit
        self._policy = policy
        self._threads = ThreadPoolExecutor(database.threads, thread_name_prefix="accounts")
        # Beside the others: scrubbing a long text would hold up everybody's admission.
        self._scrubbing = ThreadPoolExecutor(1, thread_name_prefix="scrubbing")
        self._pending: set[Future[None]] = set()
        self._is_closed = False
        """A key was made once."""
        self._swept_at = float("-inf")

    @property
    def keeps_text(self) -> bool:
        """See Front."""
        return self._policy.store_prompts

    def has_keys(self) -> bool:
        """Whether a key was ever made; without one the service must listen on loopback only."""
        with self._database.reading() as session:
            return keys.any_at_all(session)

    async def authenticate(self, authorization: str | None) -> Caller:
        """See Front.

        Raises:
            ApiError: 401; or 503, the accounts cannot be read.
        """
        return await self._in_thread(lambda: self._who(authorization))

    async def require(self, caller: Caller, *, scope: Scope, model: str) -> None:
        """See Front.

        Raises:
            ApiError: 403.
        """
        why, error = "scope", refusals.wrong_scope(caller.name, caller.scopes, scope)
        if scope in caller.scopes:
            if caller.models is None or model in caller.models:
                return
            why, error = "model", refusals.wrong_model(caller.name, caller.models, model)
        await self._in_thread(lambda: self._audit.deny(why, caller.key_id))
        raise error

    async def admit(
        self, caller: Caller, *, scope: Scope, model: str, version: str, prompt_tokens: int, max_tokens: int
    ) -> Admission:
        """See Front.

        Raises:
            ApiError: 401, the key has ended this very moment; 403; 429; or 503, the accounts cannot be written.
        """
        asked = Asked(
            key_id=caller.key_id,
            scope=scope,
            model=model,
            version=version,
            prompt_tokens=prompt_tokens,
            max_tokens=max_tokens,
        )
        entering = self._threads.submit(self._enter, asked)
        try:
            return Admission(self, await asyncio.shield(asyncio.wrap_future(entering)))
        except asyncio.CancelledError:
            entering.add_done_callback(self._take_back)  # its client has gone, and nobody else would settle it
            raise

    async def feedback(self, caller: Caller, feedback: Feedback) -> None:
        """See Front."""

        def give() -> None:
            kept = opinions.scrubbed_opinion(feedback, _scrub, keeps_text=self.keeps_text)
            with self._database.transaction() as session:
                opinions.give(session, caller, kept)

        await self._in_thread(give, self._scrubbing)

    async def usage(self, caller: Caller, *, key_id: str | None, day: str | None) -> list[UsageRow]:
        """See Front."""
        if "admin" not in caller.scopes:
            if key_id not in (None, caller.key_id):
                raise refusals.forbidden("Only an `admin` key may see the usage of other keys", "insufficient_scope")
            key_id = caller.key_id

        def read() -> list[UsageRow]:
            self._sweep()
            with self._database.reading() as session:
                return usage.used(session, key_id=key_id, day=day)

        return await self._in_thread(read)

    async def close(self) -> None:
        """Finish what has begun, and let go of the database."""
        for threads in (self._threads, self._scrubbing):
            await asyncio.to_thread(threads.shutdown)
        self._database.close()
        self._audit.flush()

    async def settle(self, admitted: Admitted, answered: Answered | None, **used: Any) -> None:
        """Count a request; for its `Admission`."""

        def count() -> None:
            with self._database.transaction() as session:
                ledger.settle(session, admitted, self._policy.prices, **used)
                if answered is not None:
                    key_id, model, version = admitted.key_id, admitted.model, admitted.version
                    opinions.remember(session, answered, key_id=key_id, model=model, version=version)

        try:
            await self._in_thread(count)
        except ApiError as error:
            # The answer is there, and its client is to have it.
            _log.error("a request cannot be counted; in an hour its prompt will be: %s", error.__cause__)
            return
        if answered is not None and answered.completions is not None and self.keeps_text:
            await self._keep_texts(answered)

    async def _keep_texts(self, answered: Answered) -> None:
        def keep() -> None:
            texts = opinions.scrubbed(answered, _scrub)
            with self._database.transaction() as session:
                if texts is not None:
                    opinions.keep_texts(session, answered.id, texts)

        kept = self._scrubbing.submit(keep)
        self._pending.add(kept)
        kept.add_done_callback(self._pending.discard)
        if len(self._pending) > _MAX_SCRUBBING:
            await asyncio.shield(asyncio.wrap_future(kept))

    async def _in_thread(self, work: Callable[[], T], threads: ThreadPoolExecutor | None = None) -> T:
        """Run to the end, even when the one who waits for it goes."""
        return await asyncio.shield(asyncio.wrap_future((threads or self._threads).submit(_available, work)))

    def _who(self, authorization: str | None) -> Caller:
        secret = _secret(authorization)
        with self._database.reading() as session:
            key = None if secret is None else keys.of_secret(session, secret)
            if key is None and not self._is_closed:
                self._is_closed = keys.any_at_all(session)
            now = session.now() if key is not None and key.expires_at is not None else 0.0
        if key is None:
            return self._stranger(authorization)
        why = "revoked" if key.revoked_at is not None else "expired"
        if key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= now):
            self._audit.deny(why, key.id)
            raise refusals.dead_key(key, why)
        return Caller(key_id=key.id, name=key.name, scopes=key.scopes, models=key.models)

    def _stranger(self, authorization: str | None) -> Caller:
        """Who has no key of ours: everybody, while there are none."""
        if not self._is_closed:
            return Caller(key_id=None, name="no key", scopes=frozenset(keys.SCOPES))
        self._audit.deny("missing key" if authorization is None else "wrong key", None)
        raise refusals.no_key() if authorization is None else refusals.wrong_key()

    def _enter(self, asked: Asked) -> Admitted:
        return _available(lambda: self._admitted(asked))

    def _admitted(self, asked: Asked) -> Admitted:
        self._sweep()
        with self._database.transaction() as session:
            outcome = ledger.admit(session, asked, self._policy.prices)
        if isinstance(outcome, Denied):
            self._audit.deny("limit" if isinstance(outcome.why, Lack) else outcome.why, asked.key_id)
            raise refusals.refusal(outcome, asked)
        return outcome

    def _take_back(self, entering: Future[Admitted]) -> None:
        if entering.cancelled() or entering.exception() is not None:
            return
        with self._database.transaction() as session:
            ledger.settle(
                session,
                entering.result(),
                self._policy.prices,
                prompt_tokens=0,
                completion_tokens=0,
                failed=True,
            )

    def _sweep(self) -> None:
        """Once a minute: close what killed processes left, forget what is old."""
        now = time.monotonic()
        if now - self._swept_at < _SWEEP_S:
            return
        self._swept_at = now
        ledger.close_abandoned(self._database, self._policy.prices)
        self._scrubbing.submit(self._forget)

    def _forget(self) -> None:
        try:
            opinions.forget_old(self._database)
        except AccountsError as error:
            _log.error("old answers are not forgotten yet: %s", error)


class Admission:
    """See `orchestrator.serve.api.front.Admission`."""

    def __init__(self, accounts: Accounts, admitted: Admitted) -> None:
        self._accounts = accounts
        self._admitted = admitted

    @property
    def headers(self) -> dict[str, str]:
        """See Admission."""
        return self._admitted.headers

    async def settle(
        self, *, prompt_tokens: int, completion_tokens: int, failed: bool = False, answered: Answered | None = None
    ) -> None:
        """See Admission. Done also when the one who waits for it goes."""
        used = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "failed": failed}
        await self._accounts.settle(self._admitted, answered, **used)


def _scrub(text: str) -> str:
    return opinions.scrubber()(text)


def _available(work: Callable[[], T]) -> T:
    try:
        return work()
    except AccountsError as error:
        # Closed rather than open: who asks is not known. The place of the accounts is none of a client's business.
        raise ApiError("The accounts of this service cannot be reached", status=503, code="unavailable") from error


def _secret(authorization: str | None) -> str | None:
    """The key in the header; None: there is none that could be one."""
    scheme, _, rest = (authorization or "").strip().partition(" ")
    rest = rest.strip()
    if scheme.lower() == "bearer":
        return rest or None
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(rest, validate=True).decode().partition(":")[2] or None
        except (binascii.Error, UnicodeDecodeError):
            return None
    return None
