"""What the routes need of the service around them: who asks, whether they may, and which model answers. Without Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from orchestrator.serve.api.completions import ModelCard

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


class Admission(Protocol):
    """A request that may be worked on. Settled exactly once, whatever becomes of it."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Limits and what is left of them, as OpenAI's clients read them (x-ratelimit-...)."""
        ...

    async def settle(self, *, prompt_tokens: int, completion_tokens: int, failed: bool = False) -> None:
        """Count what was read and made; a client that has gone has had what was made until then."""
        ...


class Front(Protocol):
    """The service around the routes."""

    async def authenticate(self, authorization: str | None) -> Caller:
        """Who asks, by the header of that name: a key as Bearer token, or as the password of HTTP Basic.

        Raises:
            ApiError: 401, no key, or a wrong, expired or revoked one.
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

    def cards(self, caller: Caller) -> list[ModelCard]:
        """The models that a caller may ask."""
        ...
