"""The ledger: every second of every worker in one part, whatever killed a run and when."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.track import events as event_log
from orchestrator.track.events import iso_time, record
from orchestrator.track.goodput import PARTS, Ledger, ledger, read_ledger
from orchestrator.track.metric_log import FILE
from orchestrator.track.metrics import DATA_WAIT, EVALUATION_TIME, STEP, STEP_TIME

START_MS = 1_700_000_000_000
SAVE_EVERY = 3


@dataclass(frozen=True)
class Life:
    """An attempt to come; all times in milliseconds."""

    away: int
    """Before it is launched."""
    by_same_driver: bool
    """Of an attempt that was stopped: for this one, with another number of workers."""
    launch: int
    workers: int
    begins: bool
    """Whether it gets as far as the loop."""
    cuts: bool
    """Whether it gets as far as cutting off lines; one that steps does."""
    steps: Sequence[tuple[int, int, int, int]]
    """Of each: its time, the wait in it, its evaluation, what passes before it."""
    checkpoint: int
    tail: int
    """From the last sign of life to the end that somebody sees."""
    end: str
    """`stopped`, `failed` (a driver saw it), `killed` (with its driver), `alive` (only of the last)."""
    back: int = 0
    """How many of the checkpoints are damaged when it begins."""


@dataclass
class World:
    """Lives a history as workers and drivers do, and keeps the truth beside what they record."""

    now: int = START_MS
    events: list[dict[str, Any]] = field(default_factory=list)
    file: list[dict[str, Any]] = field(default_factory=list)
    written_at: int | None = None
    saved: list[int] = field(default_factory=lambda: [0])
    parts: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    wall: int = 0
    deaths: int = 0
    standing: dict[int, tuple[int, int, int, int]] = field(default_factory=dict)
    before: Life | None = None
    driver: int = 0

    def spend(self, part: str, milliseconds: int, workers: int) -> None:
        self.now += milliseconds
        self.wall += milliseconds
        self.parts[part] += milliseconds * workers / 1000

    def tell(self, number: int, event: str, **facts: Any) -> None:
        self.events.append({"time": iso_time(self.now / 1000), "event": event, "attempt": number, **facts})

    def live(self, number: int, life: Life) -> None:
        before = self.before
        died = before is not None and before.end in ("failed", "killed")
        if before is not None and before.end in ("failed", "stopped") and life.by_same_driver:
            self.spend("recovery", life.away, before.workers)
        else:
            self.now += life.away
            self.driver += 1
        if before is not None and (before.end == "stopped" or life.workers != before.workers):
            self.tell(number, "resized", **{"from": before.workers, "to": life.workers, "step": self.saved[-1]})
        self.tell(number, "launched", workers=life.workers, driver=str(self.driver))
        self.deaths += life.end in ("failed", "killed")
        if life.begins:
            self.spend("recovery" if died else "startup", life.launch, life.workers)
            self.begin(number, life)
            self.work(number, life)
        elif life.end in ("stopped", "alive"):
            self.spend("recovery" if died else "startup", life.launch, life.workers)
        elif life.end == "failed":
            self.spend("recovery", life.launch, life.workers)
        self.finish(number, life, died)
        self.before = life

    def begin(self, number: int, life: Life) -> None:
        self.saved = self.saved[: max(1, len(self.saved) - life.back)]
        step = self.saved[-1]
        cut = [line for line in self.file if line[STEP] > step]
        seconds = sum(line[STEP_TIME] + line.get(EVALUATION_TIME, 0.0) for line in cut)
        last = None if self.written_at is None else iso_time(self.written_at / 1000)
        self.tell(
            number,
            "resumed" if step else "started",
            step=step,
            workers=life.workers,
            startup={"workers_s": life.launch / 1000},
            recomputed={"steps": len(cut), "seconds": round(seconds, 3)},
            last_line=last,
        )
        for done in [done for done in self.standing if done > step]:
            own, wait, evaluation, workers = self.standing.pop(done)
            self.parts["useful"] -= own * workers / 1000
            self.parts["data_wait"] -= wait * workers / 1000
            self.parts["evaluation"] -= evaluation * workers / 1000
            self.parts["recomputed"] += (own + wait + evaluation) * workers / 1000
        if cut and (life.cuts or life.steps):
            self.file = [line for line in self.file if line[STEP] <= step]
            self.written_at = self.now if self.file else None

    def work(self, number: int, life: Life) -> None:
        step = self.saved[-1]
        for i, (time, wait, evaluation, between) in enumerate(life.steps):
            step += 1
            if i:
                self.spend("idle", between, life.workers)
            began = iso_time(self.now / 1000)
            self.spend("useful", time - wait, life.workers)
            self.spend("data_wait", wait, life.workers)
            self.spend("evaluation", evaluation, life.workers)
            if i == 0:
                self.tell(number, "first-step", step=step, began=began)
            line = {STEP: step, STEP_TIME: time / 1000, DATA_WAIT: wait / 1000}
            self.file.append({**line, **({EVALUATION_TIME: evaluation / 1000} if evaluation else {})})
            self.written_at = self.now
            self.standing[step] = (time - wait, wait, evaluation, life.workers)
            if step % SAVE_EVERY == 0 or (life.end == "stopped" and i == len(life.steps) - 1):
                self.spend("checkpoint_stall", life.checkpoint, life.workers)
                self.tell(number, "checkpoint", step=step, seconds=life.checkpoint / 1000)
                self.saved.append(step)

    def finish(self, number: int, life: Life, died: bool) -> None:
        begun = life.begins and bool(life.steps)
        if life.end in ("stopped", "alive"):
            part = "idle" if begun else "recovery" if died else "startup"
            self.spend(part, life.tail, life.workers)
            if life.end == "stopped":
                self.tell(number, "ended", how="stopped")
        elif life.end == "failed":
            self.spend("recovery", life.tail, life.workers)
            self.tell(number, "failed", **{"class": "worker", "cause": "killed by signal 9"})

    def ledger(self) -> Ledger:
        return ledger(
            self.events,
            self.file,
            compiled=False,
            last_line_at=None if self.written_at is None else self.written_at / 1000,
            now=self.now / 1000 if self.before is not None and self.before.end == "alive" else None,
        )


steps = st.tuples(st.integers(1, 400), st.integers(0, 400), st.integers(0, 90), st.integers(0, 20)).map(
    lambda t: (t[0], min(t[0], t[1]), *t[2:])
)
lives = st.builds(
    Life,
    away=st.integers(0, 10**8),
    by_same_driver=st.booleans(),
    launch=st.integers(0, 5000),
    workers=st.integers(1, 4),
    begins=st.booleans(),
    cuts=st.booleans(),
    steps=st.lists(steps, max_size=8),
    checkpoint=st.integers(0, 300),
    tail=st.integers(0, 10_000),
    end=st.sampled_from(["stopped", "failed", "killed"]),
)
damaged = st.tuples(lives, st.integers(0, 2)).map(lambda t: Life(**{**vars(t[0]), "back": t[1]}))
last_end = st.sampled_from(["stopped", "failed", "killed", "alive"])


def lived(history: Sequence[Life], end: str) -> World:
    world = World()
    for number, life in enumerate([*history[:-1], *(Life(**{**vars(h), "end": end}) for h in history[-1:])], start=1):
        world.live(number, life)
    return world


@given(history=st.lists(lives, max_size=6), end=last_end)
def test_the_ledger_is_the_truth(history: list[Life], end: str) -> None:
    world = lived(history, end)
    found = world.ledger()
    assert found.wall_s == pytest.approx(world.wall / 1000, abs=1e-3)
    assert found.parts_s == pytest.approx(world.parts, abs=5e-3)
    assert len(found.restarts) == world.deaths


@given(history=st.lists(damaged, max_size=6), end=last_end, skew_ms=st.integers(-5000, 5000))
def test_parts_are_no_less_than_nothing_and_add_up(history: list[Life], end: str, skew_ms: int) -> None:
    """Also where checkpoints are damaged, and where the driver's clock is not that of the workers."""
    world = lived(history, end)
    for event in world.events:
        if event["event"] in ("launched", "failed"):
            event["time"] = iso_time(event_log.moment(event["time"]) + skew_ms / 1000)
    found = world.ledger()
    assert all(seconds >= -1e-9 for seconds in found.parts_s.values())
    sizes = {life.workers for life in history}
    if len(sizes) == 1:
        assert found.worker_s == pytest.approx(found.wall_s * sizes.pop(), abs=1e-6)
    shown = found.goodput()
    assert list(shown) == [*(f"{part}_s" for part in PARTS), "fraction"]
    assert sum(shown[f"{part}_s"] for part in PARTS) == pytest.approx(found.worker_s, abs=0.01)
    assert 0.0 <= shown["fraction"] <= 1.0
    assert all(r.recovered_in_s is None or r.recovered_in_s >= -1e-9 for r in found.restarts)


def life(end: str, count: int, **more: Any) -> Life:
    facts: dict[str, Any] = {
        "away": 0,
        "by_same_driver": False,
        "launch": 2000,
        "workers": 2,
        "begins": True,
        "cuts": True,
        "steps": [(100, 10, 0, 0)] * count,
        "checkpoint": 50,
        "tail": 0,
        "end": end,
    }
    return Life(**{**facts, **more})


def near(found: Ledger, **seconds: float) -> None:
    wanted = {**dict.fromkeys(PARTS, 0.0), **seconds}
    assert found.parts_s == pytest.approx(wanted, abs=1e-6)


def test_a_run_that_nothing_disturbs() -> None:
    found = lived([life("stopped", 6, tail=300)], "stopped").ledger()
    near(found, useful=2 * 0.54, data_wait=2 * 0.06, startup=4.0, checkpoint_stall=0.2, idle=0.6)
    assert (found.attempts, found.workers, found.restarts) == (1, 2, [])
    assert found.wall_s == pytest.approx(3.0)
    assert found.goodput()["fraction"] == round(1.08 / 6.0, 4)


def test_after_a_kill_the_night_on_disk_is_no_wall_time() -> None:
    night = 8 * 3600 * 1000
    found = lived([life("killed", 5), life("stopped", 3, away=night)], "stopped").ledger()
    # Steps 4 and 5 are done again: their first time is lost. The start-up after the kill is recovery.
    near(found, useful=2 * 0.54, data_wait=2 * 0.06, recomputed=0.4, startup=4.0, recovery=4.0, checkpoint_stall=0.2)
    assert found.wall_s < 10
    (restart,) = found.restarts
    cause = "the driver was killed, or its machine was lost"
    assert restart.to_json() == {"class": "control-plane", "cause": cause, "step": 3, "recovered_in_s": 2.0}


def test_a_driver_that_goes_on_by_itself_counts_what_it_waits() -> None:
    second = life("stopped", 3, away=1500, by_same_driver=True)
    found = lived([life("failed", 5, tail=700), second], "stopped").ledger()
    assert found.parts_s["recovery"] == pytest.approx(2 * (0.7 + 1.5 + 2.0))
    (restart,) = found.restarts
    assert restart.to_json() == {"class": "worker", "cause": "killed by signal 9", "step": 3, "recovered_in_s": 4.2}


def test_a_death_that_nothing_followed_is_not_recovered() -> None:
    (restart,) = lived([life("failed", 2, tail=700)], "failed").ledger().restarts
    assert (restart.step, restart.recovered_in_s) == (0, None)


def test_two_deaths_in_a_row_are_both_recovered_by_the_third() -> None:
    history = [life("failed", 3), life("failed", 0, begins=False, by_same_driver=True)]
    found = lived([*history, life("stopped", 1, by_same_driver=True)], "stopped").ledger()
    assert [restart.recovered_in_s for restart in found.restarts] == pytest.approx([4.0, 4.0])


def test_an_attempt_that_begins_twice_is_two() -> None:
    """A worker without a driver that ran out of memory goes on with fewer samples as the same attempt."""
    world = lived([life("failed", 5, workers=1), life("stopped", 3, workers=1)], "stopped")
    for event in world.events:
        event["attempt"] = 1
        if event["event"] == "failed":
            event.update({"event": "ended", "how": "failed"})
    told = [event for event in world.events if event["event"] != "launched"]
    found = ledger(told, world.file, compiled=False)
    near(found, useful=0.54, data_wait=0.06, recomputed=0.2, startup=2.0, recovery=2.0, checkpoint_stall=0.1)
    assert [restart.recovered_in_s for restart in found.restarts] == pytest.approx([2.0])


@pytest.mark.parametrize("compiled", [False, True])
def test_what_the_first_step_takes_above_the_others_is_compilation(compiled: bool) -> None:
    world = lived([life("stopped", 0, steps=[(5000, 0, 0, 0), *[(100, 0, 0, 0)] * 4])], "stopped")
    found = ledger(world.events, world.file, compiled=compiled)
    compile_s = 2 * 4.9 if compiled else 0.0
    assert found.parts_s["compile"] == pytest.approx(compile_s)
    assert found.parts_s["useful"] == pytest.approx(2 * 5.4 - compile_s)


def test_a_run_of_which_nothing_is_known() -> None:
    found = ledger([], [], compiled=True)
    near(found)
    assert (found.wall_s, found.attempts, found.goodput()["fraction"]) == (0.0, 0, 0.0)


def test_events_without_what_this_version_adds_still_give_a_ledger() -> None:
    world = lived([life("stopped", 6, workers=1)], "stopped")
    known = ("time", "event", "step", "attempt", "workers", "startup")
    told: list[Mapping[str, Any]] = [
        {name: event[name] for name in known if name in event}
        for event in world.events
        if event["event"] in ("started", "checkpoint")
    ]
    near(ledger(told, world.file, compiled=False), startup=2.0, useful=0.54, data_wait=0.06, idle=0.1)


def test_a_folder_with_torn_last_lines(tmp_path: Path) -> None:
    world = lived([life("killed", 5)], "killed")
    for event in world.events:
        record(tmp_path, event["event"], **{k: v for k, v in event.items() if k not in ("time", "event")})
    whole = read_ledger(tmp_path, compiled=False)
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"time": "2026-01-01T00:00:00.000+00:00", "event": "ended", "att')
    (tmp_path / FILE).write_text(f'{{"{STEP}": 1, "{STEP_TIME}": 0.1, "{DATA_WAIT}": 0.0}}\n{{"{STEP}": 2, "time')
    os.utime(tmp_path / FILE, (0, 0))
    assert len(read_ledger(tmp_path, compiled=False).restarts) == len(whole.restarts) == 1
