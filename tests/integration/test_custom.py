"""Networks of one's own, the whole way: the examples learn, are exported and proven, and one is served by Ray Serve."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from custom_fixtures import ROOT, job
from harness import free_port
from torch import Tensor

from examples.make_data import digits, likes
from orchestrator.attempts import writing_run
from orchestrator.cluster.connect import Session
from orchestrator.data.dataset import Dataset, open_dataset
from orchestrator.data.shelf import parts_at_hand
from orchestrator.errors import JobError
from orchestrator.evaluation.evaluate import evaluate_target
from orchestrator.export.custom import prove_custom
from orchestrator.export.stage import export_run
from orchestrator.job import JobSpec
from orchestrator.job_file import load_job
from orchestrator.objectives.custom import ColumnExamples, ColumnRows
from orchestrator.objectives.rows import RowTable
from orchestrator.run import prepare_only, run
from orchestrator.runfolder import dataset_of
from orchestrator.serve.deployment.deploy import deploy
from orchestrator.serve.host.processes import port_is_free
from orchestrator.store import Store
from orchestrator.track.metric_log import read_metrics
from orchestrator.train.group import TorchGroup, join_group, leave_group
from orchestrator.train.worker import run_worker

QUIET = "track.wandb.mode=disabled"


@pytest.fixture(scope="module")
def alone() -> Iterator[TorchGroup]:
    yield join_group()
    leave_group()


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def validation(asked: JobSpec, dataset: Dataset) -> dict[str, Tensor]:
    """All rows of the validation split."""
    with contextlib.ExitStack() as leases:
        parts = leases.enter_context(parts_at_hand(dataset, "validation", asked.data))
        examples = ColumnExamples(ColumnRows(RowTable(parts), list(asked.data.columns)))
        return examples.read(0, examples.count).tensors


def trained(asked: JobSpec, store: Store, session: Session, alone: TorchGroup) -> Path:
    """The run's folder, trained without Ray."""
    prepare_only(asked, store=store, session=session)
    (folder,) = store.runs.iterdir()
    with writing_run(folder) as attempt:
        run_worker(folder, attempt=attempt, group=alone)
    return folder


@pytest.mark.parametrize(("name", "rows"), [("digits", digits), ("likes", likes)])
def test_the_samples_are_what_their_script_makes(name: str, rows: Callable[[], Iterator[dict[str, object]]]) -> None:
    written = (ROOT / "jobs" / "samples" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in written] == list(rows())


@pytest.mark.parametrize(
    ("name", "target", "least"),
    [("transactions", "fraud", 0.95), ("digits", "digit", 0.9), ("recommender", "liked", 0.8)],
)
def test_an_example_learns_and_its_export_predicts_unseen_rows(
    name: str, target: str, least: float, session: Session, alone: TorchGroup, store: Store
) -> None:
    asked = job(name, QUIET)
    folder = trained(asked, store, session, alone)
    losses = [line["train/loss"] for line in read_metrics(folder)]
    assert np.mean(losses[-10:]) < 0.4 * np.mean(losses[:3])
    made = export_run(folder, at_end=lambda close: close())
    rows = validation(asked, open_dataset(dataset_of(folder)))
    found = prove_custom(made.path).predict(rows).numpy()
    answers = found.argmax(-1) if found.ndim == 2 else (found > 0.5).astype(np.int64)
    truth = rows[target].numpy()
    accuracy = float((answers == truth).mean())
    trivial = np.bincount(truth).max() / len(truth)
    assert accuracy > max(least, trivial + 0.1), f"{accuracy:.3f} of {len(truth)}, {trivial:.3f} without looking"
    scores = evaluate_target(store, str(folder)).scores.metrics
    assert scores["loss"] == pytest.approx(list(read_metrics(folder))[-1]["eval/loss"], rel=1e-4)
    assert evaluate_target(store, str(made.path)).scores.metrics == pytest.approx(scores, rel=1e-5)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"model.class": "examples.transactions:Theft"}, "examples.transactions:Theft cannot be imported"),
        ({"model.settings": "{depth: 3}"}, "cannot be made with model.settings"),
        ({"data.columns": "{merchants: null}"}, "asks for the column merchants"),
        ({"data.columns": "{fraud: null}"}, "returned no loss"),
    ],
)
def test_what_does_not_train_says_why(
    changed: dict[str, str], told: str, session: Session, alone: TorchGroup, store: Store, tmp_path: Path
) -> None:
    file = tmp_path / "job.yaml"
    lines = []
    for key, value in changed.items():
        section, name = key.split(".")
        lines.append(f"{section}: {{{name}: {value}}}")
    file.write_text("\n".join([f"extends: {ROOT / 'jobs' / 'transactions.yaml'}", *lines]) + "\n", encoding="utf-8")
    with pytest.raises(JobError) as e:
        trained(load_job(file, [QUIET]), store, session, alone)
    assert told in e.value.message


def test_a_class_that_is_not_there_is_said_before_the_data_is_prepared(session: Session, store: Store) -> None:
    job = load_job(ROOT / "jobs" / "transactions.yaml", [QUIET, "model.class=examples.transactions:Theft"])
    with pytest.raises(JobError, match=r"Theft cannot be imported"):
        run(job, store=store, session=session, until="train", while_serving=lambda *_: None)
    assert not [*store.datasets.glob("*")]


def test_under_ray_and_served(session: Session, store: Store) -> None:
    """Workers and replicas find the class in the folder that the driver runs in."""
    asked = job("transactions", QUIET, "train.steps=20", "train.workers.max=2", "train.zero.stage=1")
    outcome = run(asked, store=store, session=session, until="export", while_serving=lambda *_: None)
    export = store.root / str(outcome.export)
    service = deploy(export, settings=asked.serve, model_name=asked.name, port=free_port())
    try:
        proven = prove_custom(export)
        columns = {name: rows.tolist() for name, rows in proven.probe.items()}
        answer = httpx.post(f"{service.url}/predict", json={"columns": columns})
        assert answer.json()["predictions"] == pytest.approx(proven.predict(proven.probe).tolist(), abs=1e-5)
        wrong = httpx.post(f"{service.url}/predict", json={"columns": {"amounts": columns["amounts"]}})
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "columns")
        assert httpx.get(f"{service.url}/models").json()["data"][0]["id"] == "transactions"
    finally:
        service.stop()
    assert port_is_free(service.port)
