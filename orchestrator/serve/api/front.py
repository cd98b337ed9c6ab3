"""What the routes need of the service around them: who asks, whether they may, and which model answers. Without Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from orchestrator.serve.api.feedback import Feedback

Scope = Literal["generate", "embed", "admin"]
"""What a key may be used for; `admin` is for usage of other keys, feedback of all, and rollouts."""


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who asks."""

    key_id: str | None
    """None: the service has no keys at all, and listens on loopback only."""
    name: str
    """Of the key, for people; never the key."""
    scopes: frozenset[Scope]
    models: frozenset[str] | None = None
    """The models that may be asked; None: all."""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """An answer that feedback may speak of later."""

    id: str
    """As the client sees it."""
    prompts: tuple[str, ...] | None
    """What was asked, a chat as JSON of its messages; None unless the front `keeps_text`."""
    completions: tuple[str, ...] | None
    """What each choice said; None unless the front `keeps_text`."""


@dataclass(frozen=True, kw_only=True)
class UsageRow:
    """What one key has used of one version of a model in one day."""

    key_id: str | None
    name: str
    """Of the key."""
    model: str
    version: str
    day: str
    """YYYY-MM-DD in UTC."""
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    """By the price list; None: the model has no price."""


class Admission(Protocol):
    """A request that may be worked on. Settled exactly once, whatever becomes of it."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Limits and what is left of them, as OpenAI's clients read them (x-ratelimit-...)."""
        ...

    async def settle(
        self, *, prompt_tokens: int, completion_tokens: int, failed: bool = False, answered: Answered | None = None
    ) -> None:
        """Count what was read and made; a client that has gone has had what was made until then.

        `answered` is what feedback may speak of: of answers that came to their end.
        """
        ...


class Front(Protocol):
    """The service around the routes."""

    @property
    def keeps_text(self) -> bool:
        """Whether the job opted in to keep prompts and completions; else none is ever handed over."""
        ...

    async def authenticate(self, authorization: str | None) -> Caller:
        """Who asks, by the header of that name: a key as Bearer token, or as the password of HTTP Basic.

        Raises:
            ApiError: 401, no key, or a wrong, expired or revoked one.
        """
        ...

    async def require(self, caller: Caller, *, scope: Scope, model: str) -> None:
        """Find out whether a key may ask this at all, before anything is said of the model or done for it.

        Raises:
            ApiError: 403, the key is not for this scope or model.
        """
        ...

    async def admit(
        self, caller: Caller, *, scope: Scope, model: str, version: str, prompt_tokens: int, max_tokens: int
    ) -> Admission:
        """Let a request in: counted against the limits of its key with what it may at most make.

        Raises:
            ApiError: 403, the key is not for this scope or model; 429 with Retry-After, a limit or the budget is
                reached, or too many requests are under way.
        """
        ...

    async def feedback(self, caller: Caller, feedback: Feedback) -> None:
        """Keep what a person thinks of an answer, with the model and version that gave it.

        Raises:
            ApiError: 404, no such answer of this key (an `admin` may speak of any).
        """
        ...

    async def usage(self, caller: Caller, *, key_id: str | None, day: str | None) -> list[UsageRow]:
        """What was used, by key, model, version and day: of the caller's own key; an `admin` sees all.

        Args:
            key_id: of this key alone.
            day: of this day alone, YYYY-MM-DD in UTC.

        Raises:
            ApiError: 403, another key than the caller's own, who is no `admin`.
        """
        ...
