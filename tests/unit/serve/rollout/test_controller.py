"""A rollout as a story: what is started, routed and taken away, with replicas that do as the test says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import CapacityError, ServeError, StoreError
from orchestrator.job import Serve
from orchestrator.serve.deployment.observe import Seen
from orchestrator.serve.deployment.table import Entry, Facts, Table
from orchestrator.serve.rollout.controller import Asked, Clock, Controller
from orchestrator.serve.rollout.decide import UNRATED, Thumbs
from orchestrator.serve.rollout.history import History

GOOD = Seen(requests=100, errors=0, first_token_s=0.05, token_s=0.01)


@dataclass
class FakeFleet:
    """Versions that are there as soon as they are asked for, and are seen as `of_version` says."""

    table: Table = ()
    of_version: dict[str, Seen] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    shares: list[dict[str, float]] = field(default_factory=list)
    fails: dict[str, Exception] = field(default_factory=dict)
    swapped: list[tuple[str, str]] = field(default_factory=list)
    troubled: str | None = None
    now: float = 0.0
    on_sleep: Callable[[], None] = lambda: None

    takes_weights: bool = True
    proofs: list[str] = field(default_factory=list)

    def prove(self, export: Path, settings: Serve) -> None:
        self._fail("prove")
        self.proofs.append("here")

    def make_ready(self, old: Entry, export: Path, settings: Serve) -> bool:
        self._fail("ready")
        self.proofs += ["replicas"] * self.takes_weights
        return self.takes_weights

    def entry_of(self, export: Path, settings: Serve, *, model: str, version: str) -> Entry:
        facts = Facts(kind="decoder", fingerprint=f"fp_{export.name}", created=1)
        return Entry(model=model, version=version, export=str(export), share=1.0, app=f"{model}-{version}", facts=facts)

    def stored_table(self) -> Table:
        return self.table

    def start_beside(self, entry: Entry, settings: Serve) -> None:
        self._fail("start")
        self.started.append(entry.version)

    def try_out(self, entry: Entry) -> str:
        self._fail("try")
        return "it has generated"

    def route(self, table: Iterable[Entry]) -> None:
        self.table = tuple(table)
        self.shares.append({entry.app: round(entry.share, 6) for entry in self.table})

    def seen(self, entry: Entry, last_s: float) -> Seen:
        return self.of_version.get(entry.version, GOOD)

    def swap(self, old: Entry, new: Entry) -> float:
        self._fail("swap")
        self.swapped.append((old.app, new.export))
        return 0.004

    def trouble(self, entry: Entry) -> str | None:
        return self.troubled

    def remove(self, entry: Entry) -> None:
        self.removed.append(entry.version)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.on_sleep()

    def _fail(self, where: str) -> None:
        if where in self.fails:
            raise self.fails[where]


class Service:
    """A live service of model `m` at v1."""

    def __init__(self, tmp_path: Path) -> None:
        self.fleet = FakeFleet()
        self.history = History(tmp_path / "history.jsonl")
        self.scores: dict[str, dict[str, float]] = {}
        self.thumbs: dict[str, Thumbs] = {}
        self.told: list[str] = []
        clock = Clock(lambda: self.fleet.now, self.fleet.sleep)
        self.controller = Controller(
            self.fleet,
            self.history,
            scores_of=lambda export: self.scores.get(export.name, {}),
            thumbs_of=lambda entry, _: self.thumbs.get(entry.version, UNRATED),
            clock=clock,
        )
        entry = self.fleet.entry_of(Path("/exports/one"), Serve(), model="m", version="v1")
        self.fleet.table = (entry,)
        self.history.add("started", model="m", version="v1", export="/exports/one", settings=Serve().model_dump())

    def rollout(self, export: str = "two", *, model: str = "m", gate: str | None = None, **more: Any) -> dict[str, Any]:
        asked = Asked(export=Path("/exports", export), model=model, settings=Serve(gate=gate), **more)
        return self.controller.rollout(asked, self.told.append)

    def events(self) -> list[tuple[str, str]]:
        return [(line["event"], line["version"]) for line in self.history.lines()]

    def retired(self) -> list[str]:
        """Versions are taken away by threads."""
        for thread in threading.enumerate():
            if thread.name.startswith("retire"):
                thread.join(5)
        return self.fleet.removed


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path)


def test_without_a_canary_it_takes_over_once_it_is_warm(service: Service) -> None:
    done = service.rollout()
    assert (done["version"], done["before"], done["verdict"]) == ("v2", "v1", "promoted")
    assert service.fleet.shares == [{"m-v2": 1.0}]
    assert service.retired() == ["v1"]
    assert service.events() == [("started", "v1"), ("promoted", "v2")]


def test_a_good_canary_is_watched_for_its_time_and_promoted(service: Service) -> None:
    service.rollout(canary=0.05, for_s=120.0)
    assert service.fleet.shares == [{"m-v1": 0.95, "m-v2": 0.05}, {"m-v2": 1.0}]
    assert service.fleet.now == pytest.approx(120.0, abs=1.0)
    assert service.events()[1:] == [("canary", "v2"), ("promoted", "v2")]
    assert any("gets 5% of the requests for 120 s" in line for line in service.told)


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        (Seen(requests=20, errors=10), "10 of 20 requests failed"),
        (Seen(requests=50, first_token_s=3.0, token_s=0.01), "the first token takes 3000 ms"),
        (Seen(requests=3, silent_s=30.0), "has waited 30.0 s"),
    ],
)
def test_a_bad_canary_goes_at_once_and_the_current_version_goes_on(service: Service, seen: Seen, why: str) -> None:
    service.fleet.of_version["v2"] = seen
    with pytest.raises(ServeError, match=f"m v2 was rolled back: .*{why}.*; v1 goes on") as e:
        service.rollout(canary=0.05, for_s=120.0)
    assert e.value.exit_code == 7
    assert service.fleet.now < 5.0
    assert service.fleet.shares[-1] == {"m-v1": 1.0}
    assert service.retired() == ["v2"]
    assert service.events()[-1] == ("rolled back", "v2")
    service.fleet.of_version.clear()
    assert service.rollout()["version"] == "v3"  # a number never means two exports


def test_one_in_the_shadow_answers_nobody_until_it_takes_over(service: Service) -> None:
    watched: list[Table] = []
    service.fleet.on_sleep = lambda: watched.append(service.fleet.table)
    service.rollout(canary=0.25, for_s=120.0, shadow=True)
    current, shadow = watched[0]
    assert (current.share, current.shadow, shadow.share, shadow.shadow) == (1.0, 0.0, 0.0, 0.25)
    (entry,) = service.fleet.table
    assert (entry.version, entry.share, entry.shadow) == ("v2", 1.0, 0.0)
    assert service.events()[1:] == [("shadow", "v2"), ("promoted", "v2")]
    assert any("gets a copy of 25% of the requests for 120 s" in line for line in service.told)


def test_a_bad_one_in_the_shadow_goes_at_once(service: Service) -> None:
    service.fleet.of_version["v2"] = Seen(requests=30, refused=30)
    with pytest.raises(ServeError, match=r"m v2 was rolled back: it had no room for 30 of 60 requests.*; v1 goes on"):
        service.rollout(canary=0.25, for_s=120.0, shadow=True)
    assert service.fleet.now < 5.0
    assert [(each.app, each.share) for each in service.fleet.table] == [("m-v1", 1.0)]
    assert service.retired() == ["v2"]


def test_a_canary_that_people_like_less_goes(service: Service) -> None:
    service.thumbs = {"v1": Thumbs(up=90, down=10), "v2": Thumbs(up=2, down=10)}
    with pytest.raises(ServeError, match="2 of 12 answers were rated up, against 90 of 100 before; v1 goes on"):
        service.rollout(canary=0.05, for_s=120.0)
    assert service.fleet.now < 5.0
    assert service.fleet.shares[-1] == {"m-v1": 1.0}
    service.thumbs["v3"] = Thumbs(up=9, down=1)
    assert service.rollout(canary=0.05, for_s=120.0)["reason"] == "100 requests in 120 s, 0 failed, 9 of 10 rated up"


def test_a_canary_whose_replicas_die_goes(service: Service) -> None:
    def die() -> None:
        service.fleet.troubled = "its replicas fail: out of memory"

    service.fleet.on_sleep = die
    with pytest.raises(ServeError, match="rolled back: its replicas fail: out of memory; v1 goes on"):
        service.rollout(canary=0.5, for_s=60.0)
    assert service.fleet.shares[-1] == {"m-v1": 1.0}


@pytest.mark.parametrize(
    ("where", "error", "event"),
    [
        ("prove", StoreError("tensor x has another SHA-256"), "refused"),
        ("start", CapacityError("there is no GPU for it"), "refused"),
        ("try", ServeError("v2 did not generate: its probabilities are no numbers"), "rolled back"),
    ],
)
def test_what_fails_before_it_answers_leaves_the_table_alone(
    service: Service, where: str, error: Exception, event: str
) -> None:
    service.fleet.fails[where] = error
    with pytest.raises(type(error)):
        service.rollout(canary=0.05)
    assert service.fleet.shares == []
    assert service.events()[-1] == (event, "v2")


def test_the_gate_is_asked_before_anything_starts(service: Service) -> None:
    service.scores = {"one": {"validation_loss": 2.0}, "two": {"validation_loss": 2.5}}
    with pytest.raises(ServeError, match=r"m was not rolled out: the gate .* is not met"):
        service.rollout(gate="validation_loss <= current + 0.01")
    assert service.fleet.started == []
    service.scores["two"]["validation_loss"] = 1.9
    assert service.rollout(gate="validation_loss <= current + 0.01")["version"] == "v3"


def test_another_model_comes_beside(service: Service) -> None:
    done = service.rollout(model="n", canary=0.05)
    assert (done["version"], done["before"]) == ("v1", None)
    assert service.fleet.shares == [{"m-v1": 1.0, "n-v1": 1.0}]
    assert service.retired() == []
    assert [(e["model"], e["share"]) for e in service.controller.status()] == [("m", 1.0), ("n", 1.0)]


def test_rollback_goes_to_the_version_before_without_its_gate(service: Service) -> None:
    service.rollout("two")
    service.rollout("three")
    done = service.controller.rollback("m", service.told.append)
    assert (done["version"], done["export"], done["before"]) == ("v2", "/exports/two", "v3")
    assert service.controller.rollback("m", service.told.append)["version"] == "v1"
    with pytest.raises(ServeError, match="m had no version before this one"):
        service.controller.rollback("m", service.told.append)


def test_weights_of_the_same_shape_are_swapped_in_place(service: Service) -> None:
    done = service.rollout(in_place=True)
    assert (done["version"], done["reason"]) == ("v2", "swapped in, 4 ms without a token")
    assert service.fleet.swapped == [("m-v1", "/exports/two")] * 2
    assert service.fleet.proofs == ["replicas"]
    assert (service.fleet.started, service.retired()) == ([], [])
    (entry,) = service.fleet.table
    assert (entry.app, entry.version, entry.export) == ("m-v1", "v2", "/exports/two")


def test_weights_of_another_shape_come_beside(service: Service) -> None:
    service.fleet.fails["swap"] = ServeError("v2 could not be swapped in: another shape")
    assert service.rollout(in_place=True)["version"] == "v2"
    assert service.fleet.started == ["v2"]
    assert service.retired() == ["v1"]


def test_replicas_that_take_no_other_weights_are_replaced_by_proven_ones(service: Service) -> None:
    service.fleet.takes_weights = False
    assert service.rollout(in_place=True)["version"] == "v2"
    assert (service.fleet.proofs, service.fleet.swapped) == (["here"], [])
    assert service.fleet.started == ["v2"]


def test_weights_that_a_replica_refuses_are_served_nowhere(service: Service) -> None:
    service.fleet.fails["ready"] = StoreError("tensor x has another SHA-256")
    with pytest.raises(StoreError, match="another SHA-256"):
        service.rollout(in_place=True)
    assert (service.fleet.swapped, service.fleet.started, service.fleet.shares) == ([], [], [])
    assert service.events()[-1] == ("refused", "v2")


def test_one_rollout_at_a_time(service: Service) -> None:
    def second() -> None:
        service.fleet.on_sleep = lambda: None
        with pytest.raises(ServeError, match="a rollout is under way"):
            service.rollout("three")
        service.told.append("refused")

    service.fleet.on_sleep = second
    service.rollout(canary=0.5, for_s=2.0)
    assert "refused" in service.told
