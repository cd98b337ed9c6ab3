"""W&B: which mode, what a real offline run holds, and that its failures stay its own."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.job import WandB
from orchestrator.track.tracker import NoTracker, Tracker
from orchestrator.track.wandb import RunIdentity, WandbTracker, open_tracker, wandb_mode
from orchestrator.track.wandb_file import read_records


@pytest.fixture(autouse=True)
def _nothing_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("asked", "environ", "mode"),
    [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": "k"}, "online"),
        ("auto", {"WANDB_API_KEY": ""}, "offline"),
        ("online", {}, "online"),
        ("offline", {"WANDB_API_KEY": "k"}, "offline"),
        ("disabled", {"WANDB_API_KEY": "k"}, "disabled"),
        ("online", {"WANDB_MODE": "offline"}, "offline"),
        ("disabled", {"WANDB_MODE": "online"}, "online"),
        ("auto", {"WANDB_MODE": "disabled", "WANDB_API_KEY": "k"}, "disabled"),
        ("auto", {"WANDB_MODE": "dryrun"}, "offline"),
        ("auto", {"WANDB_MODE": "Offline"}, "offline"),
        ("offline", {"WANDB_MODE": ""}, "offline"),
    ],
)
def test_the_mode(asked: Any, environ: dict[str, str], mode: str, tmp_path: Path) -> None:
    assert wandb_mode(WandB(mode=asked), {"HOME": str(tmp_path), **environ}) == mode


def test_a_key_in_netrc_counts(tmp_path: Path) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine elsewhere login me password hush\n")
    assert wandb_mode(WandB(), {"HOME": str(tmp_path)}) == "offline"
    netrc.write_text("machine api.wandb.ai login user password hush\n")
    assert wandb_mode(WandB(), {"HOME": str(tmp_path)}) == "online"
    assert wandb_mode(WandB(), {"HOME": "/none", "NETRC": str(netrc)}) == "online"
    netrc.write_text("machine {\n broken")
    assert wandb_mode(WandB(), {"HOME": str(tmp_path)}) == "offline"


def test_disabled_tracks_nothing(tmp_path: Path) -> None:
    identity = RunIdentity("id", "name", tmp_path)
    tracker = open_tracker(WandB(mode="disabled"), identity, config={}, environ={})
    assert isinstance(tracker, NoTracker)
    assert list(tmp_path.iterdir()) == []


def read_wandb(path: Path) -> Iterator[Any]:
    """The records of a `.wandb` file."""
    from wandb.proto import wandb_internal_pb2

    for raw in read_records(path):
        yield wandb_internal_pb2.Record.FromString(raw)


@dataclass
class Held:
    """What a `.wandb` file holds."""

    run: Any = None
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: list[Any] = field(default_factory=list)
    metrics: list[Any] = field(default_factory=list)
    alerts: list[Any] = field(default_factory=list)
    exit_code: int | None = None


def read_run(path: Path) -> Held:
    held = Held()
    for record in read_wandb(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            held.run = record.run
        elif kind == "history":
            held.history.append(
                {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            )
        elif kind == "summary":
            held.summary |= {"/".join(u.nested_key) or u.key: json.loads(u.value_json) for u in record.summary.update}
        elif kind == "artifact":
            held.artifacts.append(record.artifact)
        elif kind == "metric":
            held.metrics.append(record.metric)
        elif kind == "alert":
            held.alerts.append(record.alert)
        elif kind == "exit":
            held.exit_code = record.exit.exit_code
    return held


def log(tracker: Tracker, run: Path, step: int) -> None:
    """As the loop does it: first the run's own file, then the tracker."""
    line = {"train/step": step, "train/loss": 1 / step}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    tracker.log(line)


def drive(tracker: Tracker, *, run: Path, dataset: Path, export: Path, first: int) -> None:
    tracker.used_dataset(dataset, {"hash": "0123", "vocab_size": 300})
    for step in range(first, first + 3):
        log(tracker, run, step)
    tracker.made_export(export, {"step": 3})
    tracker.summarize({"tokens_per_s": 5.5, "best_eval_loss": None})
    tracker.alert("tiny-99 failed: " + "x" * 80, "class: worker\nlast good step: 3")
    tracker.close()


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> list[Held]:
    """What two attempts of one run left, tracked for real and offline."""
    store = tmp_path_factory.mktemp("store")
    dataset, run = store / "datasets" / "tiny-0123", store / "runs" / "tiny-99"
    export = run / "export" / "step-00000003"
    for folder in (dataset, export):
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text('{"files": []}')
    held = []
    for first in (1, 4):
        asked = WandB(project="ships", tags=["a", "b"])
        who = RunIdentity("tiny-99-abc", "tiny-99", run)
        tracker = open_tracker(asked, who, config={"train": {"steps": 6}}, environ={"WANDB_MODE": "offline"})
        drive(tracker, run=run, dataset=dataset, export=export, first=first)
        (file,) = [p for p in sorted(run.glob("wandb/offline-run-*/*.wandb")) if p not in [f for f, _ in held]]
        held.append((file, read_run(file)))
    return [what for _, what in held]


def test_a_run_says_who_it_is(offline: list[Held]) -> None:
    run = offline[0].run
    assert (run.run_id, run.display_name, run.project, list(run.tags)) == (
        "tiny-99-abc",
        "tiny-99",
        "ships",
        ["a", "b"],
    )
    config = {update.key: json.loads(update.value_json) for update in run.config.update}
    assert config["train"] == {"steps": 6}


def test_a_resumed_run_is_one_run(offline: list[Held]) -> None:
    assert {held.run.run_id for held in offline} == {"tiny-99-abc"}
    assert [line["train/step"] for held in offline for line in held.history] == [1, 2, 3, 4, 5, 6]


def test_a_run_holds_every_step_by_our_axis(offline: list[Held]) -> None:
    for line in offline[0].history:
        assert line["train/loss"] == pytest.approx(1 / line["train/step"])
    assert [m.name for m in offline[0].metrics if m.name] == ["train/step"]
    assert [(m.glob_name, m.step_metric) for m in offline[0].metrics if m.glob_name] == [("*", "train/step")]


def test_a_run_has_a_summary_and_ends_well(offline: list[Held]) -> None:
    assert offline[1].summary["tokens_per_s"] == 5.5
    assert offline[1].summary["train/step"] == 6
    assert [held.exit_code for held in offline] == [0, 0]


def test_an_alert_is_an_error_with_a_title_that_fits(offline: list[Held]) -> None:
    (alert,) = offline[0].alerts
    assert (alert.title, alert.level) == ("tiny-99 failed: " + "x" * 47, "ERROR")
    assert alert.text == "class: worker\nlast good step: 3"


def test_the_dataset_and_the_export_are_artifacts_with_lineage(offline: list[Held]) -> None:
    used, made = offline[0].artifacts
    assert (used.type, used.name, used.use_after_commit) == ("dataset", "tiny-0123", True)
    assert json.loads(used.metadata) == {"hash": "0123", "vocab_size": 300, "path": "datasets/tiny-0123"}
    assert (made.type, made.name, made.use_after_commit) == ("model", "tiny-99-export", False)
    assert set(made.aliases) == {"latest", "step-00000003"}
    assert [entry.path for entry in made.manifest.contents] == ["manifest.json"]


def test_an_artifact_is_no_copy_elsewhere(offline: list[Held]) -> None:
    for artifact in offline[0].artifacts:
        assert [Path(entry.local_path).parent.name for entry in artifact.manifest.contents] in (
            [artifact.name],
            ["step-00000003"],
        )


CONFUSION = (("truth", "a", "b"), (("a", 3, 1), ("b", 0, 5)))
TEXTS = (("prompt", "text"), (("The ", "ship sails"), ("é", "")))
MANY = [f"class {i}" for i in range(101)]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Folder and history of an offline run that was told tables, and nothing below the user's home."""
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("tables")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.delenv("XDG_DATA_HOME", raising=False)
        patch.delenv("WANDB_DATA_DIR", raising=False)
        who = RunIdentity("tables-1", "tables", folder)
        tracker = open_tracker(WandB(), who, config={}, environ={"WANDB_MODE": "offline"})
        for step in (10, 20):
            tracker.table("confusion", *CONFUSION, step=step)
            tracker.table("generated", *TEXTS, step=step)
            log(tracker, folder, step)
        tracker.table("confusion", ["truth", *MANY], [[label, *range(101)] for label in MANY], step=30)
        tracker.close()
        assert "WANDB_DATA_DIR" not in os.environ
    assert not list(home.glob(".local/**/staging/*")), "tables were copied below the user's home, and left there"
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    return file.parent / "files", read_run(file).history


def tables_of(told: tuple[Path, list[dict[str, Any]]], name: str) -> dict[int, Any]:
    """By step, what the file of a table holds."""
    files, history = told
    paths = {line["train/step"]: line[f"{name}/path"] for line in history if f"{name}/path" in line}
    return {step: json.loads((files / path).read_text()) for step, path in paths.items()}


def test_the_tables_of_an_evaluation_lie_in_the_run(told: tuple[Path, list[dict[str, Any]]]) -> None:
    for name, (columns, rows) in {"tables/confusion": CONFUSION, "tables/generated": TEXTS}.items():
        found = tables_of(told, name)
        assert found.keys() >= {10, 20}
        assert found[20] == {"columns": list(columns), "data": [list(row) for row in rows]}


def test_a_confusion_matrix_is_drawn_too(told: tuple[Path, list[dict[str, Any]]]) -> None:
    cells = [["a", "a", 3], ["a", "b", 1], ["b", "a", 0], ["b", "b", 5]]
    assert tables_of(told, "charts/confusion_table")[10] == {
        "columns": ["Actual", "Predicted", "nPredictions"],
        "data": cells,
    }


def test_more_classes_than_a_plot_holds_are_a_table_alone(told: tuple[Path, list[dict[str, Any]]]) -> None:
    assert tables_of(told, "tables/confusion").keys() == {10, 20, 30}
    assert tables_of(told, "charts/confusion_table").keys() == {10, 20}


def test_the_metrics_beside_the_tables_are_all_there(told: tuple[Path, list[dict[str, Any]]]) -> None:
    assert [line["train/step"] for line in told[1] if "train/loss" in line] == [10, 20]


def test_a_process_that_cannot_work_is_said_once_and_stops_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wandb").write_text("a file where W&B wants a folder")
    tracker = WandbTracker(WandB(), RunIdentity("id", "name", tmp_path), config={}, mode="offline")
    drive(tracker, run=tmp_path, dataset=tmp_path / "none", export=tmp_path / "none", first=1)
    for step in range(12_000):  # more than the queue holds
        tracker.log({"train/step": step})
    tracker.close()
    assert capfd.readouterr().err.count("W&B failed, and nothing more is sent to it: ") == 1


def test_a_dataset_that_is_gone_does_not_stop_training(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tracker = WandbTracker(WandB(), RunIdentity("id2", "name", tmp_path), config={}, mode="offline")
    tracker.used_dataset(tmp_path / "none", {})  # has no manifest: W&B raises
    tracker.table("classes", ["label", "f1"], [["a", 0.5]], step=1)
    log(tracker, tmp_path, 1)
    tracker.close()
    assert "W&B failed" in capfd.readouterr().err


def test_the_process_is_gone_when_the_tracker_is_closed_and_its_temporary_folder_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    who = RunIdentity("id3", "name", tmp_path)
    tracker = open_tracker(WandB(), who, config={}, environ={"WANDB_MODE": "offline"})
    log(tracker, tmp_path, 1)
    tracker.close()
    assert not [child for child in psutil.Process().children(recursive=True) if "wandb" in " ".join(child.cmdline())]
    assert list((tmp_path / "tmp").iterdir()) == []
