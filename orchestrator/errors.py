"""One class per exit code; each error says what was asked, what was found, and what to do.

A user's mistake is always one of these and is printed without a traceback (`--debug` shows it).
"""

from __future__ import annotations

import errno
import signal
from typing import Any, ClassVar


class SlipwayError(Exception):
    """Base of all errors that are meant for the user.

    `message` says what was asked and what was found; `fix` says what to do about it.
    """

    exit_code = 1
    kind = "error"
    meaning: ClassVar[str | None] = None
    """Of the exit code, where it is all that is known of a command that has ended."""

    def __init__(self, message: str, *, fix: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors cross process borders (Ray workers): the default would lose the keyword arguments.
        return (_rebuild, (type(self), self.message, self.fix), vars(self))

    def __str__(self) -> str:
        return f"{self.message}\n  fix: {self.fix}" if self.fix else self.message

    def as_json(self) -> dict[str, Any]:
        """The document that `--json` prints when a command fails."""
        return {
            "error": {
                "kind": self.kind,
                "message": self.message,
                "fix": self.fix,
                "exit_code": self.exit_code,
            }
        }


def _rebuild(cls: type[SlipwayError], message: str, fix: str | None) -> SlipwayError:
    return cls(message, fix=fix)


class JobError(SlipwayError):
    """Wrong usage, or a job file that is wrong."""

    exit_code = 2
    kind = "job"
    meaning = "a mistake in the job or its use"


class DataError(SlipwayError):
    """Sources that are absent or unreadable, datasets that do not verify."""

    exit_code = 3
    kind = "data"
    meaning = "its data"


class CapacityError(SlipwayError):
    """The cluster is smaller than what the job asks for."""

    exit_code = 4
    kind = "capacity"
    meaning = "the cluster is too small"


class TrainError(SlipwayError):
    """Training failed."""

    exit_code = 5
    kind = "train"
    meaning = "training failed"


class OutOfMemoryError(TrainError):
    """A forward or backward pass did not fit; a smaller micro-batch may."""

    kind = "out of memory"


class OneSampleError(TrainError):
    """A single sample did not fit: there is no smaller micro-batch."""

    kind = "out of memory"


class NumericalError(TrainError):
    """The loss or the gradient is no finite number, or far above the last ones."""


class StoreError(SlipwayError):
    """Storage failed, is held by another process, or holds a run, checkpoint or export that does not verify."""

    exit_code = 6
    kind = "store"
    meaning = "its store"


class StorageError(StoreError):
    """The disk is full, or reading or writing failed: another time it may work."""


class ServeError(SlipwayError):
    """The service could not start, prove its model, or answer."""

    exit_code = 7
    kind = "serve"
    meaning = "its service"


class Stopped(SlipwayError):
    """A signal ended the command after everything worth keeping was saved."""

    kind = "stopped"

    def __init__(self, message: str, *, fix: str | None = None, signum: int = signal.SIGINT) -> None:
        super().__init__(message, fix=fix)
        self.signum = signum

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        """128 + the signal's number: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.signum


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, raised by the command line's signal handler.

    A KeyboardInterrupt, because Ray's and typer's own code let only that one through; either may drop the number.
    """

    def __init__(self, signum: int = signal.SIGINT) -> None:
        super().__init__(f"signal {signum}")
        self.signum = signum


def meaning_of(exit_code: int) -> str | None:
    """What a command of ours that ended with this code has met; None: the code says nothing."""
    return next(
        (one.meaning for one in SlipwayError.__subclasses__() if one.meaning and one.exit_code == exit_code), None
    )


def storage_error(error: OSError, *, doing: str) -> StoreError:
    """Turn an operating system error into one that says what to do."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(
            f"the disk is full while {doing}{where}",
            fix="free some space or point --store at a larger disk, then run the same command again",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StoreError(f"no permission while {doing}{where}", fix="check the owner and mode of the store's folder")
    return StorageError(
        f"storage failed while {doing}: {error.strerror or error}{where}", fix="check the store's folder"
    )
