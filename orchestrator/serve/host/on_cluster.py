"""Services on a cluster's own Ray Serve, through the cluster's dashboard: no Ray is joined, no store is needed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from orchestrator.cluster.jobs.client import JobsClient
from orchestrator.errors import ServeError
from orchestrator.serve.deployment.table import GATEWAY, named_by

_APPLICATIONS = "/api/serve/applications/"
_STOP_LIMIT_S = 60.0


def status(address: str) -> list[dict[str, Any]]:
    """The service of ours on the cluster, as `slipway serve --status` has those of this machine; none, or one.

    Raises:
        CapacityError: no dashboard answers at `address`, or it does not take our token.
    """
    return services(JobsClient(address).request("GET", _APPLICATIONS).json(), address=address)


def stop(address: str, port: int | None = None) -> list[dict[str, Any]]:
    """End the service; returns what was ended, once nothing of it is left.

    Raises:
        ServeError: none is there, it is on another port, Ray Serve runs what is not ours, or it does not end.
        CapacityError: no dashboard answers at `address`, or it does not take our token.
    """
    client = JobsClient(address)
    told = client.request("GET", _APPLICATIONS).json()
    found = services(told, address=address)
    if not found or port not in (None, found[0]["port"]):
        where = f"there is one on {found[0]['port']}" if found else "there is none at all"
        raise ServeError(
            f"no service of ours to stop at {address}: {where}",
            fix=f"`slipway serve --status --address {address}` shows it",
        )
    if others := [name for name in told["applications"] if not _is_ours(name)]:
        raise ServeError(
            f"Ray Serve at {address} also runs {', '.join(others)}, which is not ours and would end too",
            fix="end ours alone on the head: serve.delete of each of its applications",
        )
    client.request("DELETE", _APPLICATIONS)
    deadline = time.monotonic() + _STOP_LIMIT_S
    while services(client.request("GET", _APPLICATIONS).json(), address=address):
        if time.monotonic() > deadline:
            raise ServeError(f"the service at {address} has not ended after {_STOP_LIMIT_S:.0f} s")
        time.sleep(0.2)
    return found


def services(told: Mapping[str, Any], *, address: str) -> list[dict[str, Any]]:
    """Our service by what Ray Serve says of its applications. Pure."""
    applications: Mapping[str, Any] = told.get("applications") or {}
    gateway = applications.get(GATEWAY)
    if gateway is None:
        return []
    http = told.get("http_options") or {}
    versions = [
        {"model": named[0], "version": named[1], "state": state["status"].lower(), "share": None}
        for name, state in applications.items()
        if (named := named_by(name))
    ]
    is_up = all(state["status"] == "RUNNING" for state in applications.values())
    return [
        {
            "port": http.get("port"),
            "url": f"http://{http.get('host')}:{http.get('port')}/v1",
            "pid": None,
            "model": ", ".join(sorted({str(one["model"]) for one in versions})),
            "state": "serving" if is_up else gateway["status"].lower(),
            "answers": is_up,
            "address": address,
            "versions": versions,
        }
    ]


def _is_ours(application: str) -> bool:
    return application == GATEWAY or named_by(application) is not None
