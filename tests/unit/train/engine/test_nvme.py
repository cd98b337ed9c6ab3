"""A job that offloads to NVMe ends before its training where that cannot be had."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_fixtures import settings

from orchestrator.errors import JobError
from orchestrator.train.engine import nvme
from orchestrator.train.engine.nvme import nvme_for

TO_DISK = {"stage": 3, "offload": {"optimizer": "nvme", "nvme_path": "/nvme"}}


def test_without_libaio_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, code in {"c++": 1, "ninja": 0}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {code}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(JobError, match="offload to nvme needs DeepSpeed's async_io") as caught,
        nvme_for(settings(zero=TO_DISK), rank=0),
    ):
        pass
    assert "libaio-dev (apt)" in caught.value.message
    assert "offload to cpu" in str(caught.value.fix)


def test_other_jobs_need_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    for zero in ({"stage": 0}, {"stage": 1, "offload": {"optimizer": "cpu"}}):
        with nvme_for(settings(zero=zero), rank=0):
            pass


def test_a_folder_is_one_trainings_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvme, "require_async_io", lambda: None)  # minutes, where it is not compiled yet
    monkeypatch.setattr(nvme, "_OTHERS_S", 0.2)
    train = settings(zero={"stage": 3, "offload": {"optimizer": "nvme", "nvme_path": str(tmp_path / "disk")}})
    with nvme_for(train, rank=0), nvme_for(train, rank=1):
        with pytest.raises(JobError, match="is being written by process") as caught, nvme_for(train, rank=0):
            pass
        assert "its own" in str(caught.value.fix)
    with nvme_for(train, rank=0):
        pass


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvme, "require_async_io", lambda: None)
    (tmp_path / "file").touch()
    train = settings(zero={"stage": 3, "offload": {"optimizer": "nvme", "nvme_path": str(tmp_path / "file")}})
    with pytest.raises(JobError, match="cannot be read and written"), nvme_for(train, rank=0):
        pass
