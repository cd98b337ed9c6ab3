"""Run a function over many inputs on the cluster, in order, with progress; end the rest when one fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from orchestrator.errors import DataError, SlipwayError, storage_error

T = TypeVar("T")


def run_tasks(
    function: Callable[..., T],
    inputs: Sequence[tuple[Any, ...]],
    *,
    done: Callable[[int, T], None],
    cpus: float = 1,
) -> list[T]:
    """Call `function(*input)` for each input on workers of `cpus`; results in the order of the inputs.

    `done(i, result)` is called as input i finishes, and may raise to stop. Raises
    whatever the function raised; a lost worker is retried by Ray.
    """
    import ray

    task = ray.remote(num_cpus=cpus, scheduling_strategy="SPREAD")(function)  # on every node
    # A window of tasks, not all of them: whoever leaves early leaves little behind. They are not cancelled: in Ray
    # 2.60 that trips a check in the task manager, which ends the driver. What they still write goes nowhere, because
    # the folder they were given is gone.
    window = max(1, 2 * int(ray.cluster_resources().get("CPU", 1) / cpus))  # type: ignore[no-untyped-call]
    results: dict[int, T] = {}
    waiting = list(enumerate(inputs))[::-1]
    running: dict[Any, int] = {}
    try:
        while waiting or running:
            while waiting and len(running) < window:
                i, args = waiting.pop()
                running[task.remote(*args)] = i
            for ref in ray.wait(list(running))[0]:
                i = running.pop(ref)
                results[i] = ray.get(ref)
                done(i, results[i])
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, SlipwayError):
            raise cause from None
        if isinstance(cause, OSError):
            raise storage_error(cause, doing=f"running {function.__name__}") from error
        raise
    except ray.exceptions.RayError as error:
        raise DataError(
            f"a task ({function.__name__.strip('_')}) died on its worker: {str(error).splitlines()[0]}",
            fix="look for a lack of memory or a damaged file, then run the same command again: it goes on",
        ) from error
    return [results[i] for i in range(len(inputs))]
