from __future__ import annotations

import pytest

from orchestrator.cluster.template_process import differences


@pytest.mark.parametrize(
    ("here", "asked", "found"),
    [
        ({"RAY_JOB_ID": "1", "HOME": "/a"}, {"RAY_JOB_ID": "1", "HOME": "/b", "WANDB_MODE": "offline"}, []),
        ({"RAY_JOB_ID": "1"}, {"RAY_JOB_ID": "2"}, ["RAY_JOB_ID"]),
        ({"TORCH_LOGS": "x", "RAY_worker_niceness": "0"}, {}, ["RAY_worker_niceness"]),
        ({}, {"PYTHONPATH": "/a", "MKL_DEBUG": "1"}, ["MKL_DEBUG", "PYTHONPATH"]),
        ({"OMP_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": "2", "PYTHONBREAKPOINT": "x"}, []),
    ],
)
def test_what_is_read_at_import_must_agree(here: dict[str, str], asked: dict[str, str], found: list[str]) -> None:
    assert differences(here, asked) == found
