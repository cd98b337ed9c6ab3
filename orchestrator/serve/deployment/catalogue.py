"""The models that the gateway offers, each with its versions: which one answers a request, and what was seen of it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tokenizers import Tokenizer

from orchestrator.serve.api.answer import Served
from orchestrator.serve.api.completions import ModelCard
from orchestrator.serve.api.encoders import ServedEncoder
from orchestrator.serve.api.errors import ApiError, model_not_found
from orchestrator.serve.api.template import read_chat_format
from orchestrator.serve.deployment.copies import Copies
from orchestrator.serve.deployment.observe import ObservedEncoder, ObservedEngine, Observer, Request, Seen
from orchestrator.serve.deployment.table import Entry, Table, current, drawn, in_shadow, of_model
from orchestrator.serve.engine.encoder_protocol import EncoderEngine
from orchestrator.serve.engine.protocol import EngineBusyError, EngineError, InferenceEngine

_TOKENIZER = "tokenizer.json"
_Kind = TypeVar("_Kind", Served, ServedEncoder)


class AnyEngine(InferenceEngine, EncoderEngine, Protocol):
    """The replicas of a version, whichever kind they are of: only what its kind can do is asked of it."""


Connect = Callable[[Entry], AnyEngine]


@dataclass(frozen=True)
class Backend:
    """One version, as the gateway has it."""

    entry: Entry
    engine: AnyEngine
    observer: Observer
    served: Served | ServedEncoder | None
    """None of a network of the user's own, which is asked for predictions."""


class Catalogue:
    """The table, ready to answer from. For one event loop; `take` may be called from a thread, one call at a time."""

    def __init__(self, connect: Connect, told: Callable[[Entry, Request], None] = lambda *_: None) -> None:
        """`told` hears of each request that has ended."""
        self._connect = connect
        self._told = told
        self._now: tuple[Table, dict[str, Backend]] = ((), {})
        """Replaced as one: a request in the middle of it must find the versions of the table that it reads."""
        self._copies = Copies()

    def take(self, table: Iterable[Entry]) -> None:
        """Answer from another table. Requests under way go on with the version that they have."""
        table = tuple(table)
        before, apps = self._now[1], {entry.app for entry in table}
        kept = {app: backend for app, backend in before.items() if app in apps or backend.observer.under_way}
        new = {entry.app: self._renewed(entry, before.get(entry.app)) for entry in table}
        self._now = table, {**kept, **new}

    @property
    def table(self) -> Table:
        """What it answers from."""
        return self._now[0]

    @property
    def backends(self) -> list[Backend]:
        """All versions in the table, and those gone from it that requests are still under way with."""
        return list(self._now[1].values())

    def pick(self, model: str) -> Backend:
        """The version that answers the next request for a model.

        Raises:
            ApiError: 404, there is no such model.
            EngineBusyError: all its versions have as many requests as they may.
        """
        table, backends = self._now
        entries = of_model(table, model)
        if not entries:
            raise model_not_found(model, *dict.fromkeys(entry.model for entry in table))
        backend = backends[drawn(entries, random.random()).app]
        if not backend.observer.full:
            return backend
        # Before any work on the request: refusals must not slow down those that are let in.
        backend.observer.refuse()
        free = [entry for entry in entries if not backends[entry.app].observer.full]
        if (other := current(free, model)) is None:
            raise EngineBusyError("too many requests wait for this model; try again in a moment")
        return backends[other.app]

    def instead(self, failed: Entry) -> Backend | None:
        """The version beside one that has failed which most requests get; None: there is none."""
        table, backends = self._now
        main = current((entry for entry in table if entry.app != failed.app), failed.model)
        return None if main is None else backends[main.app]

    def copy(self, model: str, work: Callable[[Backend], Coroutine[Any, Any, None]]) -> None:
        """Have the version in the shadow do what another one does for a client, if there is one and it is its turn.

        A copy for which it has no room is dropped, and remembered as refused.
        """
        table, backends = self._now
        entry = in_shadow(table, model)
        if entry is None or random.random() >= entry.shadow:
            return
        backend = backends[entry.app]
        if backend.observer.full:
            backend.observer.refuse()
        else:
            self._copies.start(entry.app, work(backend))

    def end_copies(self) -> None:
        """Those of versions that are gone from the table. In the event loop."""
        self._copies.end_all_but({entry.app for entry in self.table})

    def choose(self, name: str) -> Served | ServedEncoder:
        """See `Models`.

        Raises:
            ApiError: 404, there is no such model; 400, it is a network of the user's own.
            EngineBusyError: as `pick`.
        """
        served = self.pick(name).served
        if served is None:
            raise ApiError(
                f"The model `{name}` does not answer here: ask /v1/predict", param="model", code="wrong_kind_of_model"
            )
        return served

    def cards(self) -> list[ModelCard]:
        """See `Models`."""
        newest = {entry.model: entry.facts.created for entry in sorted(self.table, key=lambda e: e.facts.created)}
        return [ModelCard(id=model, created=created) for model, created in sorted(newest.items())]

    async def check(self, *, timeout_s: float) -> None:
        """See `Models`: of each model the version that most requests get. Those that sleep are left alone.

        Raises:
            EngineError: one does not answer, or there is none.
        """
        table, backends = self._now
        models = {entry.model for entry in table}
        if not models:
            raise EngineError("there is no model yet")
        main = [entry for model in models if (entry := current(table, model)) is not None]
        awake = [backends[entry.app].engine for entry in main if not entry.sleeps]
        await asyncio.gather(*(engine.check(timeout_s=timeout_s) for engine in awake))

    def seen(self, app: str, last_s: float) -> Seen:
        """What clients have had of one version in the last seconds."""
        backend = self._now[1].get(app)
        return Seen() if backend is None else backend.observer.seen(last_s)

    def under_way(self, app: str) -> int:
        """Requests that a version works on."""
        backend = self._now[1].get(app)
        return 0 if backend is None else backend.observer.under_way

    def _renewed(self, entry: Entry, before: Backend | None) -> Backend:
        if before is None:
            return self._backend(entry, self._connect(entry))
        if before.entry.version == entry.version:
            return replace(before, entry=entry)
        return self._backend(entry, before.engine)  # other weights in the same replicas

    def _backend(self, entry: Entry, engine: AnyEngine) -> Backend:
        observer = Observer(told=lambda request: self._ended(entry, request), most=entry.facts.requests)
        served: Served | ServedEncoder | None = None
        if entry.facts.kind == "decoder":
            served = replace(
                _served(entry, ObservedEngine(engine, observer)),
                instead=lambda: self._served_instead(entry, Served),
                copy=lambda work: self._copy_served(entry, Served, work),
            )
        elif entry.facts.kind == "encoder":
            served = replace(
                _served_encoder(entry, ObservedEncoder(engine, observer)),
                instead=lambda: self._served_instead(entry, ServedEncoder),
                copy=lambda work: self._copy_served(entry, ServedEncoder, work),
            )
        return Backend(entry, engine, observer, served)

    def _ended(self, entry: Entry, request: Request) -> None:
        """A version that began in the shadow may have come out of it meanwhile."""
        backend = self._now[1].get(entry.app)
        self._told(entry if backend is None else backend.entry, request)

    def _served_instead(self, failed: Entry, kind: type[_Kind]) -> _Kind | None:
        other = self.instead(failed)
        return other.served if other is not None and isinstance(other.served, kind) else None

    def _copy_served(self, entry: Entry, kind: type[_Kind], work: Callable[[_Kind], Coroutine[Any, Any, None]]) -> None:
        async def of(backend: Backend) -> None:
            if isinstance(backend.served, kind):
                await work(backend.served)

        self.copy(entry.model, of)


def _tokenizer(entry: Entry) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(Path(entry.export) / _TOKENIZER))
    # Text that spells a special token gets its letters, as in the data: no prompt can end a document.
    tokenizer.encode_special_tokens = True
    return tokenizer


def _served_encoder(entry: Entry, engine: EncoderEngine) -> ServedEncoder:
    facts = entry.facts
    return ServedEncoder(
        name=entry.model,
        engine=engine,
        tokenizer=_tokenizer(entry),
        vocab_size=facts.vocab_size,
        context=facts.context,
        labels=facts.labels,
        fingerprint=facts.fingerprint,
        created=facts.created,
        version=entry.version,
    )


def _served(entry: Entry, engine: InferenceEngine) -> Served:
    facts, tokenizer = entry.facts, _tokenizer(entry)
    return Served(
        name=entry.model,
        engine=engine,
        tokenizer=tokenizer,
        eos_id=facts.eos_id,
        vocab_size=facts.vocab_size,
        context=facts.context,
        max_tokens=facts.max_tokens,
        fingerprint=facts.fingerprint,
        created=facts.created,
        version=entry.version,
        chat=read_chat_format(Path(entry.export), tokenizer),
    )
