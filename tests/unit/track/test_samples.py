"""The sample ledger: what survives of histories with kills, resizes and rollbacks, and every way it can be wrong."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.load.order import SampleOrder, deal
from orchestrator.errors import StoreError
from orchestrator.track import events
from orchestrator.track.samples import (
    FOLDER,
    RECORD,
    SKIPPED,
    Indices,
    SampleAccount,
    SampleLog,
    Window,
    account_for_samples,
    batch_of,
)

BATCH, EPOCH = 12, 50


def order(batch: int) -> Indices:
    return SampleOrder(EPOCH, seed=3).at(np.arange((batch - 1) * BATCH, batch * BATCH))


@dataclass
class Driver:
    """What attempts leave in the folder of a run: no training, but the same records and events."""

    run: Path
    attempts: int = 0
    windows: tuple[Window, ...] = ()

    def attempt(
        self,
        first: int,
        last: int,
        *,
        workers: int = 2,
        saved: int | None = None,
        flushed: bool = True,
        numbers: Callable[[int], Indices] = order,
    ) -> None:
        """From the step after `first` to `last`; `saved` is its newest checkpoint. Unflushed records are torn."""
        self.attempts += 1
        self.begin(self.attempts, first, workers)
        for rank in range(workers):
            log = SampleLog(self.run, attempt=self.attempts, rank=rank)
            place, end = deal(BATCH, rank, workers)
            for step in range(first + 1, last + 1):
                log.append(step, place, numbers(batch_of(step, self.windows))[place:end])
            log.sync()
            log.close()
            if not flushed and last > first:
                path = self.file(self.attempts, rank)
                path.write_bytes(path.read_bytes()[:-7])
        if saved is not None:
            self.save(saved)

    def begin(self, attempt: int, step: int, workers: int = 2) -> None:
        event = "resumed" if step else "started"
        events.record(self.run, event, step=step, attempt=attempt, workers=workers, startup={"engine_s": 1.0})

    def save(self, step: int) -> None:
        events.record(self.run, "checkpoint", step=step, attempt=self.attempts, path="x", seconds=0.1)

    def skip(self, *windows: Window) -> None:
        self.windows = windows
        (self.run / SKIPPED).write_text(json.dumps([vars(window) for window in windows]))

    def file(self, attempt: int, rank: int) -> Path:
        return self.run / FOLDER / f"attempt-{attempt}-rank-{rank:05d}.bin"

    def account(self, numbers: Callable[[int], Indices] = order, epoch: int | None = EPOCH) -> SampleAccount:
        return account_for_samples(self.run, order=numbers, epoch=epoch)


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    return Driver(tmp_path)


def whole(account: SampleAccount, steps: int) -> bool:
    nothing_wrong = account.first_problem is None and account.samples_lost == account.samples_repeated == 0
    return nothing_wrong and account.steps == steps and account.samples == steps * BATCH


def test_a_run_that_has_not_begun_has_consumed_nothing(driver: Driver) -> None:
    assert driver.account() == SampleAccount()


def test_only_steps_that_a_checkpoint_holds_are_judged(driver: Driver) -> None:
    driver.attempt(0, 9, saved=6, flushed=False)
    assert whole(driver.account(), 6)


def test_redone_steps_and_other_numbers_of_workers(driver: Driver) -> None:
    driver.attempt(0, 9, saved=5, flushed=False)
    driver.attempt(5, 7, workers=1)  # killed before it has saved: steps 6 and 7 again
    driver.attempt(5, 20, workers=3, saved=20)
    assert whole(driver.account(), 20)


def test_a_checkpoint_that_is_passed_over_redoes_what_was_saved(driver: Driver) -> None:
    driver.attempt(0, 9, saved=9)
    driver.attempt(6, 8)
    assert whole(driver.account(), 6)
    driver.save(8)
    assert whole(driver.account(), 8)


def test_an_attempt_that_begins_twice_stands_with_what_it_did_last(driver: Driver) -> None:
    driver.attempt(0, 4, workers=1, saved=2, numbers=lambda batch: order(batch + 1))
    driver.attempts = 0
    driver.begin(1, 0, workers=1)
    driver.attempts = 0
    driver.attempt(0, 4, workers=1, saved=4)
    assert whole(driver.account(), 4)


@given(st.integers(0, 2**32))
def test_any_history_of_kills_and_resizes_is_whole(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    rng = random.Random(seed)
    driver = Driver(tmp_path_factory.mktemp("run"))
    saved = 0
    for _ in range(rng.randint(1, 5)):
        last = saved + rng.randint(0, 9)
        new = rng.randint(saved, last)
        driver.attempt(saved, last, workers=rng.randint(1, 4), saved=new or None, flushed=new == last)
        saved = rng.choice([new, new, max(0, new - 2)])  # now and then the newest is passed over
    driver.begin(driver.attempts + 1, saved)
    assert whole(driver.account(), saved)


def test_skipped_batches_are_told_apart_from_lost_ones(driver: Driver) -> None:
    driver.attempt(0, 9, saved=5)
    driver.skip(Window(after_step=5, batches=2), Window(after_step=8, batches=1))
    driver.attempt(5, 10, saved=10)
    account = driver.account()
    assert whole(account, 10)
    assert account.samples_skipped == 3 * BATCH
    (driver.run / SKIPPED).unlink()
    assert driver.account().samples_lost == 5 * BATCH


def test_a_window_before_the_first_step(driver: Driver) -> None:
    driver.skip(Window(after_step=0, batches=4))
    driver.attempt(0, 3, saved=3)
    assert whole(driver.account(), 3)
    assert driver.account().samples_skipped == 4 * BATCH


def test_windows_that_cannot_be_read_are_an_error(driver: Driver) -> None:
    driver.attempt(0, 3, saved=3)
    (driver.run / SKIPPED).write_text('[{"after": 3}]')
    with pytest.raises(StoreError, match=SKIPPED):
        driver.account()


def test_a_resume_that_reads_the_step_before_again_is_found(driver: Driver) -> None:
    driver.attempt(0, 5, saved=5)
    driver.attempt(5, 8, saved=8, numbers=lambda batch: order(batch - 1))
    account = driver.account()
    assert account.samples_lost == account.samples_repeated == 3 * BATCH
    assert account.first_problem == "step 6: samples 0 to 5 are not those of the order"


def test_a_rank_without_records_has_lost_its_share(driver: Driver) -> None:
    driver.attempt(0, 4, workers=3, saved=4)
    driver.file(1, 1).unlink()
    account = driver.account()
    assert (account.samples_lost, account.samples_repeated) == (16, 0)
    assert account.first_problem == "step 1: no rank has noted samples 4 to 7"


def test_ranks_that_overlap_have_repeated(driver: Driver) -> None:
    driver.attempt(0, 2, workers=2, saved=2)
    log = SampleLog(driver.run, attempt=1, rank=2)
    log.append(2, 4, order(2)[4:8])
    log.close()
    account = driver.account()
    assert (account.samples_lost, account.samples_repeated) == (0, 4)
    assert account.first_problem == "step 2: two ranks have samples 4 to 5"


@pytest.mark.parametrize("at", range(RECORD.itemsize))
def test_a_damaged_record_is_none(driver: Driver, at: int) -> None:
    driver.attempt(0, 4, workers=1, saved=4)
    raw = bytearray(driver.file(1, 0).read_bytes())
    raw[RECORD.itemsize + at] ^= 1
    driver.file(1, 0).write_bytes(raw)
    account = driver.account()
    assert account.samples_lost == BATCH
    assert account.first_problem == "step 2: no rank has noted samples 0 to 11"


def test_an_order_that_brings_a_sample_twice_in_an_epoch_is_found(driver: Driver) -> None:
    def twice(batch: int) -> Indices:
        numbers = order(batch).copy()
        if batch == 3:
            numbers[0] = order(2)[0]
        return numbers

    driver.attempt(0, 5, saved=5, numbers=twice)
    assert driver.account(twice, epoch=None).first_problem is None
    account = driver.account(twice)
    assert (account.samples_lost, account.samples_repeated) == (1, 1)
    assert account.first_problem == "step 3: 1 sample(s) come again in the same epoch"


def test_a_number_outside_of_the_dataset_is_found(driver: Driver) -> None:
    def beyond(batch: int) -> Indices:
        return order(batch) + EPOCH * (batch == 2)

    driver.attempt(0, 3, saved=3, numbers=beyond)
    assert driver.account(beyond).samples_repeated == BATCH


def test_a_step_that_ends_an_epoch_short(driver: Driver) -> None:
    def short(batch: int) -> Indices:
        return order(batch)[:7] if batch == 2 else order(batch)

    driver.attempt(0, 3, saved=3, numbers=short)
    account = driver.account(short, epoch=None)
    assert account.first_problem is None
    assert account.samples == 2 * BATCH + 7


def test_no_append_waits_for_the_disk(driver: Driver) -> None:
    log = SampleLog(driver.run, attempt=1, rank=0)
    log.append(1, 0, order(1))
    assert driver.file(1, 0).stat().st_size == 0
    log.sync()
    assert driver.file(1, 0).stat().st_size == RECORD.itemsize
    log.close()
