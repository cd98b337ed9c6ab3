"""A catalogue that is torn, old, locked, or cut off in the middle of an update breaks no command."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from catalogue_fixtures import lay_out_runs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.catalogue import database
from orchestrator.catalogue.database import FILE, read, write
from orchestrator.catalogue.look import look
from orchestrator.catalogue.tables import FORMAT, TABLES, Facts
from orchestrator.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    found = Store(tmp_path / "store")
    lay_out_runs(found, 4)
    look(found)
    return found


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_WAIT_S", 0.1)


def facts(number: int, state: str = "started") -> Facts:
    path = f"runs/r{number}"
    return Facts.of(path, "seen", {"runs": [{"run": path, "state": state}], "tags": [{"run": path, "tag": "a"}]})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert write(store, [facts(1), facts(2)], [])
    assert read(store) == {"runs/r1": facts(1), "runs/r2": facts(2)}
    assert write(store, [facts(2, "trained")], ["runs/r1"])
    assert read(store) == {"runs/r2": facts(2, "trained")}


def garbage(path: Path) -> None:
    path.write_bytes(b"no database at all" * 400)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:9000])


def holes(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096 : 4096 * 6] = bytes(4096 * 5)
    path.write_bytes(content)


def older(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE lineage")
        connection.execute(f"PRAGMA user_version = {FORMAT - 1}")


def newer(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {FORMAT + 1}")


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [garbage, cut_off, holes, older, newer, empty])
def test_a_file_that_cannot_be_used_is_made_anew(store: Store, damage: Callable[[Path], None]) -> None:
    whole, rows = read(store), look(store).runs()
    damage(store.root / FILE)
    assert look(store).runs() == rows
    assert read(store) == whole


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(st.integers(0, 60_000), st.binary(min_size=1, max_size=64))
def test_bytes_that_differ_break_no_command(store: Store, at: int, other: bytes) -> None:
    path = store.root / FILE
    content = bytearray(path.read_bytes())
    at %= len(content)
    content[at : at + len(other)] = other
    path.write_bytes(content)
    assert len(look(store).runs()) == 4


def test_a_stale_journal_is_not_taken_for_one_of_the_new_file(store: Store) -> None:
    rows = look(store).runs()
    garbage(store.root / FILE)
    (store.root / f"{FILE}-journal").write_bytes(bytes.fromhex("d9d505f920a163d7") + bytes(4096))
    assert look(store).runs() == rows
    assert sqlite3.connect(store.root / FILE).execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.usefixtures("hurried")
def test_a_lock_that_is_not_to_be_had_breaks_nothing(store: Store) -> None:
    lay_out_runs(store, 1, first=7)
    other = sqlite3.connect(store.root / FILE, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    assert len(look(store).runs()) == 5
    other.execute("ROLLBACK")
    assert len(read(store)) == 4
    assert len(look(store).runs()) == 5
    assert len(read(store)) == 5


@pytest.mark.usefixtures("hurried")
def test_a_place_where_nothing_can_be_written_breaks_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    lay_out_runs(store, 2)
    (store.root / FILE).mkdir()
    assert len(look(store).runs()) == 2
    (store.root / FILE).rmdir()
    (store.root / f".{FILE}.lock").unlink()
    (store.root / f".{FILE}.lock").mkdir()
    assert len(look(store).runs()) == 2
    assert not (store.root / FILE).exists()


def test_readers_hold_no_lock_between_reads(store: Store) -> None:
    read(store)
    with sqlite3.connect(store.root / FILE, timeout=0.0, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        other.execute("ROLLBACK")


def test_several_writers_leave_what_each_has_read(tmp_path: Path) -> None:
    store, done = Store(tmp_path), []

    def one(number: int) -> None:
        for turn in range(10):
            done.append(write(store, [facts(number, str(turn)), facts(number + 10)], []))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert all(len(found.rows["runs"]) == 1 for found in read(store).values())
    for thread in threads:
        thread.join()
    found = read(store)
    assert all(done)
    assert [found[f"runs/r{number}"].rows["runs"][0]["state"] for number in range(4)] == ["9"] * 4
    assert len(found) == 8


UPDATES = """
import sys
from pathlib import Path
from orchestrator.catalogue.database import write
from orchestrator.catalogue.tables import Facts
from orchestrator.store import Store

number = 0
while True:
    number += 1
    rows = [Facts.of(f"runs/r{i}", str(number), {"runs": [{"run": f"runs/r{i}", "step": number}]}) for i in range(400)]
    assert write(Store(Path(sys.argv[1])), rows, [])
    print(number, flush=True)
"""


def test_a_kill_in_the_middle_of_an_update_leaves_the_one_before_or_the_one_after(tmp_path: Path) -> None:
    rng, journals = random.Random(3), 0
    lay_out_runs(Store(tmp_path), 3)
    journal = tmp_path / f"{FILE}-journal"
    for turn in range(6):
        writer = subprocess.Popen([sys.executable, "-c", UPDATES, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(rng.uniform(0.0, 0.12))
        while turn % 2 and not journal.exists():
            pass
        writer.send_signal(signal.SIGKILL)
        last = [1, *(int(line) for line in writer.stdout)][-1]
        writer.wait()
        journals += journal.exists()
        with sqlite3.connect(tmp_path / FILE) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            ((fewest, most, count),) = connection.execute("SELECT min(step), max(step), count(*) FROM runs").fetchall()
        assert (fewest, count) == (most, 400)
        assert fewest in (last, last + 1)
    assert journals  # or no update was cut off
    assert len(look(Store(tmp_path)).runs()) == 3  # the rows of folders that are not there are gone
    assert len(read(Store(tmp_path))) == 3


def test_every_table_names_the_folder_of_a_row(store: Store) -> None:
    with sqlite3.connect(store.root / FILE) as connection:
        for table, columns in TABLES.items():
            found = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            assert found == ["folder", *columns]
