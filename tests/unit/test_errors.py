"""Errors: one exit code each, and whole on the other side of a process border."""

from __future__ import annotations

import errno
import pickle
import signal

import pytest

from orchestrator.attempts import FencedError
from orchestrator.errors import (
    CapacityError,
    DataError,
    JobError,
    NumericalError,
    OneSampleError,
    ServeError,
    SlipwayError,
    Stopped,
    StorageError,
    StoreError,
    TrainError,
    meaning_of,
    storage_error,
)

CODES = {
    NumericalError: 5,
    OneSampleError: 5,
    StorageError: 6,
    JobError: 2,
    DataError: 3,
    CapacityError: 4,
    TrainError: 5,
    StoreError: 6,
    FencedError: 6,
    ServeError: 7,
}


@pytest.mark.parametrize(("kind", "code"), CODES.items())
def test_each_kind_has_its_exit_code_and_document(kind: type[SlipwayError], code: int) -> None:
    error = kind("found", fix="do")
    assert str(error) == "found\n  fix: do"
    assert error.as_json() == {
        "error": {"kind": kind.kind, "message": "found", "fix": "do", "exit_code": code},
    }


@pytest.mark.parametrize("error", [*(kind("found", fix="do") for kind in CODES), Stopped("x", signum=signal.SIGTERM)])
def test_it_crosses_process_borders_whole(error: SlipwayError) -> None:
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert (back.as_json(), str(back)) == (error.as_json(), str(error))


def test_a_stop_exits_as_its_signal_does() -> None:
    assert [Stopped("x", signum=s).exit_code for s in (signal.SIGINT, signal.SIGTERM)] == [130, 143]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "the disk is full while saving (/x)"),
        (errno.EDQUOT, "the disk is full while saving (/x)"),
        (errno.EACCES, "no permission while saving (/x)"),
        (errno.EROFS, "no permission while saving (/x)"),
        (errno.EIO, "storage failed while saving: Input/output error (/x)"),
    ],
)
def test_the_systems_errors_say_what_to_do(number: int, said: str) -> None:
    told = storage_error(OSError(number, "Input/output error", "/x"), doing="saving")
    assert (told.message, told.exit_code) == (said, 6)
    assert isinstance(told, StorageError) is not said.startswith("no permission")  # which time does not mend
    assert told.fix


def test_a_code_that_is_all_that_is_known_has_a_meaning() -> None:
    assert [meaning_of(code) for code in (0, 1, 2, 7, 143)] == [
        None,
        None,
        "a mistake in the job or its use",
        "its service",
        None,
    ]
