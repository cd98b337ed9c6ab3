"""The catalogue says what the folders say, whatever became of its file."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from catalogue_fixtures import lay_out_dataset, lay_out_export, lay_out_runs

from orchestrator.catalogue import look as looking
from orchestrator.catalogue.database import FILE
from orchestrator.catalogue.look import look
from orchestrator.compare import tag_run
from orchestrator.status import describe_run
from orchestrator.store import Store, write_json


@pytest.fixture
def store(tmp_path: Path) -> Store:
    found = Store(tmp_path / "store")
    lay_out_runs(found, 6)
    for number in range(3):
        lay_out_dataset(found, f"data-{number:012x}")
    return found


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that were read, in order."""
    paths: list[str] = []
    own = looking.read_facts

    def noted(store: Store, path: str, seen: str) -> Any:
        paths.append(path)
        return own(store, path, seen)

    monkeypatch.setattr(looking, "read_facts", noted)
    return paths


def sql(store: Store, text: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(store.root / FILE) as connection:
        return connection.execute(text).fetchall()


def test_rows_are_those_of_the_folders_the_last_at_work_first(store: Store) -> None:
    rows = look(store).runs()
    assert [row["name"].rpartition("-")[2] for row in rows] == [f"{n:012x}" for n in (5, 4, 3, 2, 1, 0)]
    for row in rows:
        told = describe_run(store.root / row["run"], store)
        assert {name: row[name] for name in told} == told
    assert (rows[0]["job"], rows[0]["state"], rows[1]["state"]) == ("job5", "exported", "started")
    assert rows[0]["began_at"] == "2023-11-14T22:18:20.000+00:00" == rows[0]["worked_at"]
    assert look(store).runs() == rows


def test_what_has_not_changed_is_not_read_again(store: Store, read: list[str]) -> None:
    look(store)
    assert len(read) == 9
    read.clear()
    look(store)
    assert read == []


@pytest.mark.parametrize(
    "change",
    [
        lambda run: (run / "metrics.jsonl").open("a").write('{"train/step": 6, "train/loss": 1.0}\n'),
        lambda run: tag_run(run, add=["x"], remove=[]),
        lambda run: shutil.rmtree(run / "checkpoints" / "step-00000005"),
        lambda run: lay_out_export(run / "export" / "step-00000009", run=run.name, step=9),
    ],
    ids=["a line", "a tag", "a checkpoint gone", "an export"],
)
@pytest.mark.parametrize("later_s", [0, 1e6])
def test_a_change_is_seen_now_and_once_it_has_settled(
    store: Store, read: list[str], change: Callable[[Path], object], later_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = look(store).runs()
    run = store.root / before[0]["run"]
    read.clear()
    change(run)
    if later_s:
        from orchestrator.catalogue import facts

        monkeypatch.setattr(facts, "SETTLED_AFTER_S", -later_s)
    after = look(store).runs()
    assert read == [before[0]["run"]]
    assert after[0] != before[0]
    assert after[1:] == before[1:]
    read.clear()
    assert look(store).runs() == after
    assert read == ([] if later_s else [before[0]["run"]])  # what has just changed is read each time


def test_runs_that_go_are_forgotten_and_others_come(store: Store) -> None:
    gone = look(store).runs()[0]["run"]
    shutil.rmtree(store.root / gone)
    lay_out_runs(store, 1, first=6)
    names = [row["run"] for row in look(store).runs()]
    assert gone not in names
    assert len(names) == 6
    assert sql(store, f"SELECT count(*) FROM lineage WHERE child = '{gone}'") == [(0,)]


def test_lineage_leads_on_in_sql(store: Store) -> None:
    first, second = sorted(store.runs.iterdir())[1:3]
    about = {"format": 1, "dataset": "../../datasets/mix-1", "origin": {"folder": "", "identity": "i"}}
    about["origin"] = {"folder": str(first / "checkpoints" / "step-00000005"), "identity": "i"}
    write_json(second / "run.json", about)
    lay_out_dataset(store, "mix-1", mixes=("data-000000000000", "data-000000000001"))
    lay_out_export(store.exports / "given-1", run=None, step=0)
    lay_out_export(second / "export" / "step-00000005", run=second.name, step=5)
    catalogue = look(store)
    assert catalogue.about(f"runs/{first.name}")["children"] == [f"runs/{second.name}"]
    above = sql(
        store,
        "WITH RECURSIVE above(path) AS (SELECT 'runs/" + second.name + "/export/step-00000005' "
        "UNION SELECT parent FROM lineage JOIN above ON child = path) SELECT path FROM above",
    )
    wanted = {f"runs/{first.name}", "datasets/mix-1", "datasets/data-000000000000", "datasets/data-000000000001"}
    assert wanted <= {path for (path,) in above}
    exports = sql(store, "SELECT export, family FROM exports WHERE run IS NULL")
    assert exports == [("exports/given-1", "llama")]
    assert sql(store, "SELECT tokens, documents FROM datasets") == [(40, 4)] * 4


def test_commands_and_services_are_told(store: Store) -> None:
    run = look(store).runs()[0]["run"]
    service = {"url": "http://127.0.0.1:1/v1", "port": 1, "model": "m", "export": f"{run}/export/step-00000005"}
    told = look(store, services=[service])
    assert told.runs()[0]["served"] == ["http://127.0.0.1:1/v1"]
    (job,) = told.about(run)["jobs"]
    assert (job["submitter"], job["host"], job["attempt"], job["workers"]) == ("ana", "here", 1, 2)
    assert sql(store, "SELECT url, model FROM services") == [("http://127.0.0.1:1/v1", "m")]
    assert look(store).runs()[0]["served"] == []
    assert sql(store, "SELECT * FROM services") == []


def test_what_cannot_be_read_says_so(store: Store) -> None:
    for name, run in zip(("plan.json", "metrics.jsonl", "run.json"), sorted(store.runs.iterdir()), strict=False):
        (run / name).write_text("{torn")
        (run / "job.yaml").write_text("layers: [")
    lay_out_dataset(store, "torn-1")
    (store.datasets / "torn-1" / "manifest.json").write_text("{")
    by_state = {row["name"]: row for row in look(store).runs()}
    first = min(by_state)
    assert by_state[first]["state"] == "unreadable"
    assert "not valid YAML" in by_state[first]["error"]
    assert len([row for row in by_state.values() if row["state"] != "unreadable"]) == 5
    assert "manifest" in sql(store, "SELECT error FROM datasets WHERE dataset = 'datasets/torn-1'")[0][0]


def test_a_file_that_the_disk_refuses_is_one_unreadable_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = min(store.runs.iterdir())

    def describe(run: Path, store: Store) -> dict[str, Any]:
        if run.name == bad.name:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(run / "metrics.jsonl"))
        return describe_run(run, store)

    monkeypatch.setattr("orchestrator.catalogue.facts.describe_run", describe)
    told = {row["name"]: row for row in look(store).runs()}
    assert len(told) == 6
    assert (told[bad.name]["state"], told[bad.name]["step"]) == ("unreadable", None)
    assert "Input/output error" in told[bad.name]["error"]
    assert told[bad.name]["worked_at"]


def test_a_store_that_is_not_there_has_nothing_and_is_not_made(tmp_path: Path) -> None:
    assert look(Store(tmp_path / "none")).runs() == []
    assert not (tmp_path / "none").exists()


def test_deleting_the_file_loses_nothing(store: Store) -> None:
    tag_run(next(store.runs.iterdir()), add=["kept"], remove=[])
    before = look(store)
    (store.root / FILE).unlink()
    assert look(store) == before


def test_a_moved_store_is_read_from_its_catalogue(store: Store, tmp_path: Path, read: list[str]) -> None:
    before = look(store).runs()
    os.rename(store.root, tmp_path / "elsewhere")
    read.clear()
    assert look(Store(tmp_path / "elsewhere")).runs() == before
    assert read == []
