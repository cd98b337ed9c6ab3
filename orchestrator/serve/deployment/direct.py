"""Calls of replicas by the process that deployed them, one by one and without a router.

Ray Serve's handles would do. But each keeps a call to Serve's controller waiting, and when that ends with the service
Ray prints to this process's standard output that the call has failed: there the command line's documents go.
"""

from __future__ import annotations

import pickle
import uuid
from typing import Any

import ray
from ray.serve._private.common import RequestMetadata

_NAMESPACE = "serve"
PREFIX = "SERVE_REPLICA::"
READY_LIMIT_S = 600.0
"""A large model takes minutes to read; a replica that fails is noticed at once."""


def replicas(app: str = "") -> list[Any]:
    """The replicas of an application that live; of all where none is named."""
    wanted = f"{PREFIX}{app}#" if app else PREFIX
    found = []
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["namespace"] == _NAMESPACE and actor["name"].startswith(wanted):
            try:
                found.append(ray.get_actor(actor["name"], namespace=_NAMESPACE))
            except ValueError:  # it has just ended
                continue
    return found


def call_each(app: str, method: str, *args: Any, timeout_s: float) -> list[Any]:
    """What each replica of an application returns.

    Raises:
        RayError: what one of them raised; it has died, or did not answer in time.
    """
    asked = uuid.uuid4().hex
    metadata = pickle.dumps(RequestMetadata(asked, asked, call_method=method, app_name=app))
    found: list[Any] = ray.get(
        [replica.handle_request.remote(metadata, *args) for replica in replicas(app)], timeout=timeout_s
    )
    return found


def last_error(message: str) -> str:
    """The error in a message of Serve's, without the traceback that leads to it."""
    flush_left = [line for line in message.splitlines() if line and not line[0].isspace()]
    return flush_left[-1] if flush_left else message
