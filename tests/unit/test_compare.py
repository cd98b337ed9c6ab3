"""Runs beside each other, and their tags."""

from __future__ import annotations

from pathlib import Path

import pytest
from evaluation_fixtures import job_file, lay_out_dataset, lay_out_run
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cli_print_runs import print_comparison
from orchestrator.compare import compare_runs, differences, read_tags, tag_run
from orchestrator.errors import JobError, StoreError
from orchestrator.job_file import load_job
from orchestrator.store import Store


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    store = Store(tmp_path / "store")
    job = load_job(job_file(tmp_path))
    dataset = lay_out_dataset(store, job)
    other = load_job(job_file(tmp_path), ["train.optimizer.learning_rate=5.0e-4", "train.seed=9"])
    return [lay_out_run(store, one, dataset) for one in (job, other)]


def test_runs_are_told_with_the_keys_that_differ(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    tag_run(runs[1], add=["slow"], remove=[])
    told = compare_runs(runs, Store(runs[0].parents[1]))
    assert [row["run"] for row in told["runs"]] == [f"runs/{run.name}" for run in runs]
    assert [row["tags"] for row in told["runs"]] == [[], ["slow"]]
    by_key = {row["key"]: row["values"] for row in told["differences"]}
    assert set(by_key) == {"train.optimizer.learning_rate", "train.seed"}
    assert by_key["train.seed"][1] == 9
    print_comparison(told)
    shown = capsys.readouterr().out
    assert "train.seed" in shown
    assert "slow" in shown


@given(
    st.recursive(
        st.integers() | st.lists(st.integers()), lambda inner: st.dictionaries(st.text("ab", min_size=1), inner)
    )
)
def test_a_document_differs_from_itself_in_nothing(value: object) -> None:
    assert differences([{"x": value}, {"x": value}, {"x": value}]) == []
    assert differences([{"x": value}, {"x": value, "y": 1}]) == [{"key": "y", "values": [None, 1]}]


def test_tags_are_added_and_taken_away(runs: list[Path]) -> None:
    run = runs[0]
    assert read_tags(run) == []
    assert tag_run(run, add=["b", "a", "b"], remove=[]) == ["a", "b"]
    assert tag_run(run, add=["c"], remove=["a"]) == ["b", "c"] == read_tags(run)
    with pytest.raises(JobError, match="has no tag x; it has b, c"):
        tag_run(run, add=[], remove=["x"])
    for word in ("", "two words", "a,b", "y" * 65, "tab\t"):
        with pytest.raises(JobError, match="is no tag"):
            tag_run(run, add=[word], remove=[])
    (run / "tags.json").write_text("{")
    with pytest.raises(StoreError, match="cannot be read"):
        read_tags(run)
