"""Brings new versions of models to a live service, and takes bad ones back, without an operator."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from orchestrator.errors import ServeError, SlipwayError
from orchestrator.job import Serve
from orchestrator.serve.deployment import table
from orchestrator.serve.deployment.observe import Seen
from orchestrator.serve.deployment.table import Entry, Table
from orchestrator.serve.rollout.decide import UNRATED, Decision, Thumbs, decide
from orchestrator.serve.rollout.gate import refusal
from orchestrator.serve.rollout.history import History

_LOOK_EVERY_S = 0.5
_TELL_EVERY_S = 10.0
Tell = Callable[[str], None]


class Fleet(Protocol):
    """What runs: `deployment.fleet`, as far as a rollout needs it."""

    def prove(self, export: Path, settings: Serve) -> None:
        """Raise a SlipwayError unless the export computes what was trained."""
        ...

    def entry_of(self, export: Path, settings: Serve, *, model: str, version: str) -> Entry:
        """A version that gets all requests, of a proven export."""
        ...

    def stored_table(self) -> Table:
        """What the gateway answers from."""
        ...

    def start_beside(self, entry: Entry, settings: Serve) -> None:
        """Start a version's replicas; return when they are warm. Raises a SlipwayError, and leaves nothing, if not."""
        ...

    def try_out(self, entry: Entry) -> str:
        """Have a version generate, and say how that went. Raises ServeError if it did not."""
        ...

    def route(self, table: Iterable[Entry]) -> None:
        """Have the gateway answer from another table. Raises ServeError if it does not answer; it will from that."""
        ...

    def seen(self, entry: Entry, last_s: float) -> Seen:
        """What clients have had of a version in the last seconds."""
        ...

    def make_ready(self, old: Entry, export: Path, settings: Serve) -> bool:
        """Have the replicas of a version read and prove the weights of an export that may come in place of theirs.

        Raises a SlipwayError where these do not prove. False: such replicas cannot take others.
        """
        ...

    def swap(self, old: Entry, new: Entry) -> float:
        """Put a version's weights into the replicas of another. Raises ServeError if they do not fit."""
        ...

    def trouble(self, entry: Entry) -> str | None:
        """Why a version has no healthy replica; None if it has."""
        ...

    def remove(self, entry: Entry) -> None:
        """End a version that is in the table no more, once it has finished what it has begun."""
        ...


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A rollout."""

    export: Path
    model: str
    settings: Serve
    canary: float | None = None
    """Share of the requests that the new version gets first; None: it takes over once it is proven and warm."""
    for_s: float = 120.0
    """How long the canary is watched."""
    shadow: bool = False
    """Whether the canary gets copies of its share of the requests, and nobody sees its answers."""
    in_place: bool = False
    """Swap the weights into the replicas that there are, if their shape is the same; a canary cannot be."""


@dataclass(frozen=True)
class Clock:
    """Time, as the controller reads it."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


class Controller:
    """One rollout at a time."""

    def __init__(
        self,
        fleet: Fleet,
        history: History,
        *,
        scores_of: Callable[[Path], dict[str, float]],
        thumbs_of: Callable[[Entry, float], Thumbs] = lambda _, __: UNRATED,
        clock: Clock = Clock(),
    ) -> None:
        """How exports and versions are judged.

        Args:
            fleet: what runs.
            history: hears what became of each version.
            scores_of: how an export did on the validation split; empty where that is not known.
            thumbs_of: how people rated a version in the last seconds.
            clock: the time.
        """
        self._fleet = fleet
        self._history = history
        self._scores_of = scores_of
        self._thumbs_of = thumbs_of
        self._clock = clock
        self._turn = threading.Lock()

    def status(self) -> list[dict[str, Any]]:
        """The versions that are served now, with their shares."""
        return [
            {"model": e.model, "version": e.version, "share": round(e.share, 6), "shadow": e.shadow, "export": e.export}
            for e in self._fleet.stored_table()
        ]

    def rollout(self, asked: Asked, tell: Tell, *, waits: bool = False) -> dict[str, Any]:
        """Bring a version: prove it, pass the gate, start it beside, watch it, and promote it.

        Where another rollout is under way it `waits` for its end, or is refused.

        Raises:
            ServeError: it was refused or rolled back, and why; the current version goes on.
            SlipwayError: as `Fleet.prove`.
        """
        with self._alone(asked.model, waits=waits):
            version = self._history.next_version(asked.model)
            return self._bring(asked, version, tell, gate=asked.settings.gate)

    def rollback(self, model: str, tell: Tell) -> dict[str, Any]:
        """Go back to the version that was served before, which has to prove itself again.

        Raises:
            ServeError: there was none, or its export does not prove any more.
        """
        with self._alone(model):
            before = self._history.before(model)
            if before is None:
                raise ServeError(f"{model} had no version before this one", fix="`slipway serve RUN` brings another")
            settings = Serve.model_validate(before["settings"])
            asked = Asked(export=Path(before["export"]), model=model, settings=settings)
            return self._bring(asked, before["version"], tell, gate=None)

    @contextmanager
    def _alone(self, model: str, *, waits: bool = False) -> Iterator[None]:
        if not self._turn.acquire(blocking=waits):
            raise ServeError(f"{model} has to wait: a rollout is under way", fix="try again when it has ended")
        try:
            yield
        finally:
            self._turn.release()

    def _bring(self, asked: Asked, version: str, tell: Tell, *, gate: str | None) -> dict[str, Any]:
        began = self._clock.now()
        standing = self._fleet.stored_table()
        current = table.current(standing, asked.model)
        told: dict[str, Any] = {"model": asked.model, "version": version, "export": str(asked.export)}
        try:
            scores = self._admit(asked, current, gate)
            fits = current if self._is_ready(asked, current) else None
            if fits is None:
                self._fleet.prove(asked.export, asked.settings)
            tell(f"{asked.export.name} is proven")
            entry = self._fleet.entry_of(asked.export, asked.settings, model=asked.model, version=version)
            decision = None if fits is None else self._swap(entry, fits, tell)
            if decision is None:
                self._fleet.start_beside(entry, asked.settings)
        except SlipwayError as error:
            self._history.add("refused", **told, reason=error.message)
            raise
        decision = decision or self._take_over(asked, entry, current, tell)
        if decision.verdict == "roll back":
            self._history.add("rolled back", **told, reason=decision.reason)
            raise ServeError(
                f"{asked.model} {version} was rolled back: {decision.reason}; "
                + (f"{current.version} goes on" if current else "nothing has changed"),
                fix="look at the export and at the service's log; the history says more",
            )
        before = current.version if current else None
        settings = asked.settings.model_dump(mode="json")
        self._history.add("promoted", **told, reason=decision.reason, before=before, scores=scores, settings=settings)
        took_s = round(self._clock.now() - began, 3)
        return {**told, "before": before, "verdict": "promoted", "reason": decision.reason, "took_s": took_s}

    def _admit(self, asked: Asked, current: Entry | None, gate: str | None) -> dict[str, float]:
        scores = self._scores_of(asked.export)
        why = refusal(gate, scores, None if current is None else self._scores_of(Path(current.export)))
        if why is not None:
            raise ServeError(
                f"{asked.model} was not rolled out: {why}", fix="train on, or change serve.gate of the job"
            )
        return scores

    def _is_ready(self, asked: Asked, current: Entry | None) -> bool:
        """Whether replicas hold the export's weights, which they have proven: here it need not be done once more."""
        return asked.in_place and current is not None and self._fleet.make_ready(current, asked.export, asked.settings)

    def _swap(self, entry: Entry, current: Entry, tell: Tell) -> Decision | None:
        """Put weights into the replicas that there are; None where these are of another shape."""
        try:
            blackout_s = self._fleet.swap(current, entry)
        except ServeError as error:
            tell(error.message)
            return None
        now = replace(entry, app=current.app)
        self._fleet.route(table.alone(self._fleet.stored_table(), now))
        try:  # once more: for a replica that has started meanwhile, with the weights of before
            self._fleet.swap(now, now)
        except ServeError as error:  # the version answers already
            tell(error.message)
        return Decision("promote", f"swapped in, {blackout_s * 1e3:.0f} ms without a token")

    def _take_over(self, asked: Asked, entry: Entry, current: Entry | None, tell: Tell) -> Decision:
        """From warm replicas to the model's only version; or back to how it was."""
        try:
            tell(f"{entry.version} is warm: {self._fleet.try_out(entry)}")
            decision = Decision("promote", "proven and warm")
            if current is not None and asked.canary is not None:
                of_shadow = replace(entry, share=0.0, shadow=asked.canary)
                tried = of_shadow if asked.shadow else replace(entry, share=asked.canary)
                decision = self._watch(tried, current, asked.for_s, tell)
        except BaseException as error:
            self._take_back(entry)
            if isinstance(error, ServeError):
                return Decision("roll back", error.message)
            raise
        if decision.verdict == "roll back":
            self._take_back(entry)
            return decision
        standing = self._fleet.stored_table()
        self._fleet.route(table.alone(standing, entry))
        tell(f"{entry.version} answers all requests")
        for old in table.of_model(standing, entry.model):
            if old.app != entry.app:
                self._retire(old)
        return decision

    def _watch(self, canary: Entry, current: Entry, for_s: float, tell: Tell) -> Decision:
        """Give a version its share, and judge it until it is promoted or sent away."""
        self._fleet.route(table.beside(self._fleet.stored_table(), canary))
        kind: Literal["shadow", "canary"] = "shadow" if canary.shadow else "canary"
        share = canary.shadow or canary.share
        self._history.add(kind, model=canary.model, version=canary.version, export=canary.export, share=share)
        copies = "a copy of " if canary.shadow else ""
        tell(f"{canary.version} gets {copies}{share:.0%} of the requests for {for_s:g} s")
        began, told_at = self._clock.now(), 0.0
        while True:
            self._clock.sleep(_LOOK_EVERY_S)
            if (trouble := self._fleet.trouble(canary)) is not None:
                return Decision("roll back", trouble)
            elapsed_s = self._clock.now() - began
            new, old = self._fleet.seen(canary, elapsed_s), self._fleet.seen(current, elapsed_s)
            decision = decide(
                new,
                old,
                elapsed_s=elapsed_s,
                for_s=for_s,
                new_rated=self._thumbs_of(canary, elapsed_s),
                old_rated=self._thumbs_of(current, elapsed_s),
            )
            if decision.verdict != "wait":
                tell(f"{canary.version}: {decision.verdict}: {decision.reason}")
                return decision
            if elapsed_s - told_at >= _TELL_EVERY_S:
                told_at = elapsed_s
                tell(f"{elapsed_s:.0f} s: {decision.reason}")

    def _take_back(self, entry: Entry) -> None:
        standing = self._fleet.stored_table()
        try:
            if any(each.app == entry.app for each in standing):
                self._fleet.route(table.without(standing, entry))
        finally:
            self._retire(entry)

    def _retire(self, entry: Entry) -> None:
        """Beside whoever waits for the answer: what a version has begun may take minutes."""
        threading.Thread(target=self._fleet.remove, args=(entry,), name=f"retire {entry.app}", daemon=True).start()
