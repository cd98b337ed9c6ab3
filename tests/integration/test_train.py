"""Training through real parts: Ray Train, DeepSpeed, gloo, Arrow shards."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Result, Runner, command, environment, kill_all, losses, steps

from orchestrator.checkpoint.layout import step_folder
from orchestrator.errors import CapacityError, StoreError

Slipway = Callable[..., Result]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, job_file: Path, session) -> tuple[Path, str]:
    """A run of the tiny job that nothing disturbs."""
    store = tmp_path_factory.mktemp("unbroken")
    outcome = Runner(job_file, session)(store)
    assert outcome.run is not None
    return store, outcome.run


def test_every_step_has_one_line_and_the_loss_falls(unbroken: tuple[Path, str]) -> None:
    assert steps(*unbroken) == list(range(1, 41))
    curve = losses(*unbroken)
    assert curve[-1] < curve[0] - 0.3


def test_checkpoints_hold_what_the_contract_says(unbroken: tuple[Path, str]) -> None:
    store, name = unbroken
    folders = sorted(p.name for p in (store / name / "checkpoints").iterdir())
    assert folders == ["step-00000036", "step-00000040"]  # every 4 steps, the last two kept
    folder = store / name / "checkpoints" / folders[-1]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["step"], manifest["world_size"], manifest["zero_stage"], manifest["precision"]) == (
        40,
        2,
        2,
        "fp32",
    )
    names = {entry["path"] for entry in manifest["files"]}
    assert {"model.safetensors", "probe.safetensors", "progress.json", "job.yaml", "rng-00001.safetensors"} <= names


def test_a_finished_run_is_reused_at_once(unbroken: tuple[Path, str], runner: Runner) -> None:
    began_at = time.monotonic()
    outcome = runner(unbroken[0])
    assert outcome.stages["prepare"] == outcome.stages["train"] == "reused"
    assert outcome.train_loss is not None
    assert outcome.validation_loss is not None
    assert time.monotonic() - began_at < 5


def test_zero_stage_3_gives_the_same_losses(unbroken: tuple[Path, str], runner: Runner, tmp_path: Path) -> None:
    (tmp_path / "datasets").symlink_to(unbroken[0] / "datasets")
    outcome = runner(tmp_path, "train.zero.stage=3")
    assert losses(tmp_path, outcome.run or "") == pytest.approx(losses(*unbroken), abs=1e-4)


@pytest.mark.parametrize("stage", [0, 1])
def test_zero_stages_under_torchrun_give_the_same_losses(
    stage: int, unbroken: tuple[Path, str], slipway: Callable[..., Result], job_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "datasets").symlink_to(unbroken[0] / "datasets")
    slipway("prepare", job_file, "--store", tmp_path, "--set", f"train.zero.stage={stage}")
    (run,) = (tmp_path / "runs").iterdir()
    torchrun = [str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node", "2", "-m", "--"]
    done = subprocess.run(
        [*torchrun, "orchestrator.train.worker", "--run", str(run)],
        capture_output=True, text=True, timeout=200, env=environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path, f"runs/{run.name}") == pytest.approx(losses(*unbroken), abs=1e-4)


def test_one_worker_without_ray_gives_the_same_losses(
    unbroken: tuple[Path, str], runner: Runner, tmp_path: Path
) -> None:
    """Without dropout, whose masks belong to a rank, the curve does not depend on the number of workers."""
    two = runner(tmp_path, "model.dropout=0")
    run = tmp_path / (two.run or "")
    with_two = losses(tmp_path, two.run or "")
    for folder in (run / "checkpoints").iterdir():
        (folder / "COMMITTED").unlink()
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.train.worker", "--run", str(run)],
        capture_output=True, text=True, timeout=120, env=environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path, two.run or "") == pytest.approx(with_two, abs=2e-5)


def _await_steps(run_folder: Path, wanted: int, driver: subprocess.Popen[str]) -> None:
    """And the first checkpoint, which is written beside the steps after it."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and driver.poll() is None:
        found = list(run_folder.glob("runs/*/metrics.jsonl"))
        is_saved = any(run_folder.glob("runs/*/checkpoints/*/COMMITTED"))
        if is_saved and len(found[0].read_text().splitlines()) >= wanted:
            return
        time.sleep(0.02)
    pytest.fail(f"no step {wanted}: {driver.communicate()[1]}")


def _start(store: Path, job_file: Path, *more: str) -> subprocess.Popen[str]:
    args = command("run", job_file, "--store", store, "--until", "train", "--json", *more)
    return subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())


def test_kill_9_then_the_same_command_gives_the_unbroken_curve(
    unbroken: tuple[Path, str], job_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "datasets").symlink_to(unbroken[0] / "datasets")
    driver = _start(tmp_path, job_file)
    _await_steps(tmp_path, 6, driver)
    kill_all(driver)
    before = next(tmp_path.glob("runs/*/metrics.jsonl")).read_bytes()
    out, err = _start(tmp_path, job_file).communicate(timeout=200)
    outcome = json.loads(out)
    assert outcome["resumed_from_step"] in range(4, 40, 4), err
    assert steps(tmp_path, outcome["run"]) == list(range(1, 41))
    assert losses(tmp_path, outcome["run"]) == losses(*unbroken)
    kept = b"".join(before.splitlines(keepends=True)[: outcome["resumed_from_step"]])
    assert (tmp_path / outcome["run"] / "metrics.jsonl").read_bytes().startswith(kept)


def test_ctrl_c_saves_and_exits_130_and_the_next_run_continues(
    unbroken: tuple[Path, str], job_file: Path, runner: Runner, tmp_path: Path
) -> None:
    (tmp_path / "datasets").symlink_to(unbroken[0] / "datasets")
    more = ("--set", "train.checkpoint.every_steps=1000", "--set", "train.steps=400")
    driver = _start(tmp_path, job_file, *more)
    _await_steps(tmp_path, 3, driver)
    driver.send_signal(signal.SIGINT)
    out, err = driver.communicate(timeout=90)
    assert driver.returncode == 130, err
    assert "saved up to step" in err
    assert "Traceback" not in err
    saved = sorted(p.name for p in next(tmp_path.glob("runs/*/checkpoints")).iterdir())
    assert len(saved) == 1
    assert json.loads(out)["error"]["exit_code"] == 130
    assert not [p for p in tmp_path.rglob("*") if ".tmp-" in p.name]
    assert not _children_of_slipway(driver.pid)


def _children_of_slipway(pid: int) -> list[str]:
    return [
        command_line
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and (command_line := _command_line(entry)) and f"slipway-ray-{pid}-" in command_line
    ]


def _command_line(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def test_an_altered_checkpoint_is_told_of_and_passed_over(
    unbroken: tuple[Path, str], runner: Runner, slipway: Slipway, tmp_path: Path
) -> None:
    (tmp_path / "datasets").symlink_to(unbroken[0] / "datasets")
    first = runner(tmp_path)
    newest = step_folder(tmp_path / (first.run or "") / "checkpoints", 40)
    weights = bytearray((newest / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    asked = ("checkpoints", "verify", Path(first.run or "").name, "--store", tmp_path, "--json")
    whole = slipway(*asked)
    assert (whole.code, whole.document["verified"]) == (0, True)
    assert whole.document["checkpoints"][-1].items() >= {"step": 40, "workers": 2, "problem": None}.items()
    (newest / "model.safetensors").write_bytes(weights)
    damaged = slipway(*asked)
    assert (damaged.code, damaged.document["verified"]) == (6, False)
    assert "model.safetensors was altered" in damaged.document["checkpoints"][-1]["problem"]
    listed = slipway("checkpoints", "list", Path(first.run or "").name, "--store", tmp_path)
    assert (listed.code, "40" in listed.stdout) == (0, True)
    again = runner(tmp_path)
    assert again.resumed_from_step == 36
    assert losses(tmp_path, again.run or "") == losses(*unbroken)


def test_a_run_goes_on_with_another_number_of_workers(
    unbroken: tuple[Path, str], runner: Runner, tmp_path: Path
) -> None:
    """Without dropout, whose masks belong to a rank."""
    (tmp_path / "datasets").symlink_to(unbroken[0] / "datasets")
    two = runner(tmp_path, "model.dropout=0")
    run, with_two = str(two.run), losses(tmp_path, str(two.run))
    shutil.rmtree(tmp_path / run / "checkpoints/step-00000040")
    alone = runner(tmp_path, "model.dropout=0", "train.workers={min: 1, max: 1}")
    assert (alone.run, alone.resumed_from_step) == (run, 36)
    assert steps(tmp_path, run) == [*range(1, 41)]
    assert losses(tmp_path, run)[:36] == with_two[:36]
    assert losses(tmp_path, run)[36:] == pytest.approx(with_two[36:], rel=1e-5)
    manifest = json.loads((tmp_path / run / "checkpoints/step-00000040/manifest.json").read_text())
    assert (manifest["world_size"], manifest["zero_stage"]) == (1, 2)


def test_a_run_that_is_being_written_is_refused(unbroken: tuple[Path, str], runner: Runner, tmp_path: Path) -> None:
    from orchestrator.attempts import writing_run

    (tmp_path / "datasets").symlink_to(unbroken[0] / "datasets")
    run = tmp_path / unbroken[1]
    run.mkdir(parents=True)
    with writing_run(run), pytest.raises(StoreError, match=f"being written by process {os.getpid()}"):
        runner(tmp_path)


def test_too_few_workers_is_said_at_once(runner: Runner, tmp_path: Path) -> None:
    began_at = time.monotonic()
    with pytest.raises(CapacityError, match=r"asks for at least 64 worker\(s\).* 2 fit on 2 CPUs"):
        runner(tmp_path, "train.workers={min: 64, max: 64}")
    assert time.monotonic() - began_at < 10
    assert not list(tmp_path.iterdir())
