"""Other weights for replicas that go on with what they have begun: made ready in each of them first, then put in."""

from __future__ import annotations

import contextlib
from pathlib import Path

import ray

from orchestrator.errors import ServeError
from orchestrator.export.manifest import is_custom, read_export_manifest
from orchestrator.job import Serve
from orchestrator.serve.deployment import direct
from orchestrator.serve.deployment.table import Entry
from orchestrator.serve.host import target


def make_ready(old: Entry, export: Path, settings: Serve) -> bool:
    """Have the replicas of a version read and prove an export, whose weights `swap` can put into them then.

    What nobody holds ready, because none runs, is proven here. False: only decoders of ours take other weights.

    Raises:
        StoreError, ServeError: it does not prove, as `prove`, or could not be read.
    """
    if settings.engine != "slipway" or old.facts.kind != "decoder":
        return False
    if is_custom(export) or not read_export_manifest(export).is_decoder:
        return False
    try:
        problems = direct.call_each(old.app, "make_ready", str(export), timeout_s=direct.READY_LIMIT_S)
    except ray.exceptions.RayError as error:
        _keep(old)
        raise ServeError(
            f"{export.name} could not be proven by the replicas: {direct.last_error(str(error))}"
        ) from error
    if not problems:
        target.prove(export, settings)
    if (problem := next(filter(None, problems), None)) is not None:
        _keep(old)
        raise problem
    return True


def swap(old: Entry, new: Entry) -> float:
    """Put the weights of a version into the replicas of another; returns the longest time without a token, in seconds.

    Raises:
        ServeError: they have not the same shape, or do not prove. All replicas have the weights of `old` then.
    """
    try:
        blackouts = _have_swapped(old.app, new.export)
    except ServeError as error:
        _keep(old)
        raise ServeError(f"{new.version} could not be swapped in: {error.message}") from error
    return max(blackouts, default=0.0)


def _keep(old: Entry) -> None:
    """Have replicas go on with the weights of a version, and hold no others ready beside them."""
    with contextlib.suppress(ServeError):  # one that cannot has died: the next one begins with them
        _have_swapped(old.app, old.export)


def _have_swapped(app: str, export: str) -> list[float]:
    """Have each replica go on with an export's weights.

    Raises:
        ServeError: one could not.
    """
    try:
        answers = direct.call_each(app, "swap", export, timeout_s=direct.READY_LIMIT_S)
    except ray.exceptions.RayError as error:
        raise ServeError(direct.last_error(str(error))) from error
    if (failed := next((each for each in answers if isinstance(each, Exception)), None)) is not None:
        raise ServeError(str(failed))
    return answers
