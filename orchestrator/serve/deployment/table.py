"""Which versions of which models a service has, and the share of requests that each gets. Pure: no Ray, no torch."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Kind = Literal["decoder", "encoder", "custom"]
GATEWAY = "slipway"
"""The gateway's application on Ray Serve."""
_APP = re.compile(r"(?P<model>.+)-(?P<version>v\d+)-[0-9a-f]{6}")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the gateway has to know of an export besides its tokenizer, so that it need not load the model."""

    kind: Kind
    fingerprint: str
    """Changes with the weights."""
    created: int
    """Seconds since 1970."""
    eos_id: int = 0
    vocab_size: int = 0
    """Ids below this may stand in a prompt."""
    context: int = 0
    max_tokens: int = 0
    """Largest completion that a request may ask for."""
    requests: int | None = None
    """Under way at once, with all the replicas that it may have; None: no bound."""
    labels: tuple[str, ...] = ()
    """Classes of an encoder by their number; none: it embeds."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One version of a model, with replicas of its own."""

    model: str
    version: str
    """`v1`, `v2`, ...: of this model, on this service."""
    export: str
    """The export's folder."""
    share: float
    """Of the model's requests, 0 to 1."""
    app: str
    """The name of its application on Ray Serve; weights of the same shape may be swapped into the one that is there."""
    facts: Facts
    sleeps: bool = False
    """Whether it may be without any replica while nobody asks."""
    shadow: float = 0.0
    """Of the model's requests, those that it gets a copy of: nobody sees what it answers. 0: it is in no shadow."""

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Entry:
        """The same entry again."""
        facts = data["facts"]
        return cls(**{**data, "facts": Facts(**{**facts, "labels": tuple(facts["labels"])})})


Table = tuple[Entry, ...]


def app_of(model: str, version: str) -> str:
    """A name for the application of a version, which no other has: not that of the same version before, either."""
    return f"{model}-{version}-{uuid.uuid4().hex[:6]}"


def named_by(app: str) -> tuple[str, str] | None:
    """Model and version of which an application is; None: it is none of a version."""
    found = _APP.fullmatch(app)
    return None if found is None else (found["model"], found["version"])


def of_model(table: Iterable[Entry], model: str) -> Table:
    """The versions of one model."""
    return tuple(entry for entry in table if entry.model == model)


def current(table: Iterable[Entry], model: str) -> Entry | None:
    """The version that most requests get; None if there is no such model. One in the shadow is never it."""
    answering = (entry for entry in of_model(table, model) if not entry.shadow)
    return max(answering, key=lambda entry: entry.share, default=None)


def in_shadow(table: Iterable[Entry], model: str) -> Entry | None:
    """The version of a model that gets copies of requests; None: there is none."""
    return next((entry for entry in of_model(table, model) if entry.shadow), None)


def beside(table: Iterable[Entry], new: Entry) -> Table:
    """With one more version, which takes its share from those that the model has."""
    kept = [
        replace(entry, share=entry.share * (1.0 - new.share)) if entry.model == new.model else entry for entry in table
    ]
    return (*kept, new)


def alone(table: Iterable[Entry], new: Entry) -> Table:
    """With one version as the model's only one."""
    return (*(entry for entry in table if entry.model != new.model), replace(new, share=1.0, shadow=0.0))


def without(table: Iterable[Entry], gone: Entry) -> Table:
    """Without a version; what it got goes to those that are left, in proportion."""
    kept = [entry for entry in table if entry.app != gone.app]
    total = sum(entry.share for entry in of_model(kept, gone.model))
    return tuple(
        replace(entry, share=entry.share / total) if entry.model == gone.model and total > 0 else entry
        for entry in kept
    )


def drawn(entries: Sequence[Entry], at: float) -> Entry:
    """The version whose turn it is, for a number drawn from [0, 1)."""
    target = at * sum(entry.share for entry in entries)
    for entry in entries:
        target -= entry.share
        if target < 0.0:
            return entry
    return max(entries, key=lambda entry: entry.share)


def next_version(used: Iterable[str]) -> str:
    """The version after all that a model has had."""
    numbers = [int(version[1:]) for version in used if version[:1] == "v" and version[1:].isdigit()]
    return f"v{max(numbers, default=0) + 1}"
