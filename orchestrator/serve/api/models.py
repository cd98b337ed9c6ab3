"""The models behind one service: which one a request is for. No torch, no Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from orchestrator.serve.api.answer import Served
from orchestrator.serve.api.completions import ModelCard
from orchestrator.serve.api.encoders import ServedEncoder
from orchestrator.serve.api.errors import ApiError, model_not_found
from orchestrator.serve.api.feedback import Feedback
from orchestrator.serve.api.front import Answered, Caller, Scope, UsageRow


class Models(Protocol):
    """What is served."""

    def choose(self, name: str) -> Served | ServedEncoder:
        """The model of this name; of several versions one, by their shares.

        Raises:
            ApiError: 404, there is none.
        """
        ...

    def cards(self) -> list[ModelCard]:
        """All models."""
        ...

    async def check(self, *, timeout_s: float) -> None:
        """Find out whether they answer.

        Raises:
            EngineError: one does not, or not in time.
        """
        ...


@dataclass(frozen=True)
class OneModel:
    """A service of one model in one version."""

    served: Served | ServedEncoder

    def choose(self, name: str) -> Served | ServedEncoder:
        """See `Models`."""
        if name != self.served.name:
            raise model_not_found(name, self.served.name)
        return self.served

    def cards(self) -> list[ModelCard]:
        """See `Models`."""
        return [ModelCard(id=self.served.name, created=self.served.created)]

    async def check(self, *, timeout_s: float) -> None:
        """See `Models`."""
        await self.served.engine.check(timeout_s=timeout_s)


@dataclass(frozen=True)
class OpenAdmission:
    """Without limits."""

    headers: Mapping[str, str] = field(default_factory=dict)

    async def settle(
        self, *, prompt_tokens: int, completion_tokens: int, failed: bool = False, answered: Answered | None = None
    ) -> None:
        """See `Admission`; nothing is kept."""


class OpenFront:
    """A service without keys and accounts, for loopback alone: everyone may ask, nothing is kept."""

    keeps_text = False

    async def authenticate(self, authorization: str | None) -> Caller:
        """See `Front`."""
        return Caller(key_id=None, name="", scopes=frozenset({"generate", "embed", "admin"}))

    async def require(self, caller: Caller, *, scope: Scope, model: str) -> None:
        """See `Front`."""

    async def admit(
        self, caller: Caller, *, scope: Scope, model: str, version: str, prompt_tokens: int, max_tokens: int
    ) -> OpenAdmission:
        """See `Front`."""
        return OpenAdmission()

    async def feedback(self, caller: Caller, feedback: Feedback) -> None:
        """See `Front`."""
        raise _no_accounts("feedback")

    async def usage(self, caller: Caller, *, key_id: str | None, day: str | None) -> list[UsageRow]:
        """See `Front`."""
        raise _no_accounts("usage")


def _no_accounts(what: str) -> ApiError:
    return ApiError(f"This service keeps no accounts, so that it has no {what}", status=404, code="no_accounts")
