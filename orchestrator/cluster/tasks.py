"""Run a function over many inputs on the cluster, in order, with progress; end the rest when one fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from orchestrator.errors import SlipwayError, storage_error

T = TypeVar("T")
_END_LIMIT_S = 10.0


def run_tasks(
    function: Callable[..., T],
    inputs: Sequence[tuple[Any, ...]],
    *,
    done: Callable[[int], None],
    cpus: float = 1,
) -> list[T]:
    """Call `function(*input)` for each input on workers of `cpus`; results in the order of the inputs.

    `done(i)` is called as input i finishes. Raises whatever the function raised; a lost worker is retried by Ray.
    """
    import ray

    task = ray.remote(num_cpus=cpus)(function)
    refs = [task.remote(*args) for args in inputs]
    index = {ref: i for i, ref in enumerate(refs)}
    pending = list(refs)
    try:
        while pending:
            finished, pending = ray.wait(pending)
            for ref in finished:
                ray.get(ref)
                done(index[ref])
        return list(ray.get(refs))
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, SlipwayError):
            raise cause from None
        if isinstance(cause, OSError):
            raise storage_error(cause, doing=f"running {function.__name__}") from error
        raise
    finally:
        _end(pending)


def _end(pending: list[Any]) -> None:
    """Nobody may go on writing into a folder that its owner is about to remove."""
    import ray

    for ref in pending:
        ray.cancel(ref)  # not by force: that trips a check in Ray 2.60's task manager, which ends the driver
    if pending:
        ray.wait(pending, num_returns=len(pending), timeout=_END_LIMIT_S)
