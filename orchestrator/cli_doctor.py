"""`slipway doctor`: this machine, or every machine of a cluster; what is wrong comes with its fix."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from orchestrator.cli_common import DEFAULT_STORE, AsJson, StoreDir, print_document, store_at

At = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="ADDR",
        help="Check this cluster: HOST:PORT or `auto` on one of its machines, else its dashboard's URL.",
    ),
]


def doctor(store: StoreDir = DEFAULT_STORE, as_json: AsJson = False, address: At = None) -> None:
    """Check this machine, or with --address each machine of a cluster: versions, Ray, token, disk, clocks, speeds.

    Example:  slipway doctor --address auto --store /shared/slipway
    """
    where = store_at(store).root
    if address is None:
        from orchestrator.cluster.doctor import examine

        checks = [vars(check) for check in examine(where)]
        document = {"healthy": all(check["ok"] for check in checks), "checks": checks}
        print_document(document, as_json, "print_checks")
    else:
        document = _of_cluster(address, where)
        print_document(document, as_json, "doctor.print_cluster")
    if not document["healthy"]:
        sys.exit(1)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(doctor)


def _of_cluster(address: str, store: Any) -> dict[str, Any]:
    from orchestrator.cluster.doctor_cluster import examine_cluster, examine_through

    if address.startswith(("http://", "https://")):
        return examine_through(address, store)
    from orchestrator.cluster.connect import connected

    with connected(address):
        return examine_cluster(store)
