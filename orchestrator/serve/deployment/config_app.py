"""The applications as a file of Ray Serve's names them, for services that no command of ours starts (KubeRay's).

Serve calls each builder in a task of its own, on its own Ray.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.job import Serve
from orchestrator.job_section import Section
from orchestrator.serve.deployment import fleet
from orchestrator.serve.deployment.applications import proxied_gateway_application, version_application
from orchestrator.serve.deployment.gateway import store_table, stored_table
from orchestrator.serve.deployment.table import Entry
from orchestrator.serve.host import address
from orchestrator.serve.host.target import find_export
from orchestrator.store import Store


class Arguments(Section):
    """What both builders get: the file gives them the same."""

    store: str
    run: str
    """A run, the beginning of its name, or the folder of an export."""
    application: str
    """The name under which the version stands in the file."""
    settings: Serve


def gateway(arguments: dict[str, Any]) -> Any:
    """The gateway, which answers to callers with a key alone: behind it there is no loopback.

    Raises:
        ServeError: nobody has a key.
        StoreError: there is no such run, or it has no export.
    """
    given = Arguments.model_validate(arguments)
    require_key(given.settings)
    _entry(given)
    return proxied_gateway_application(given.settings)


def version(arguments: dict[str, Any]) -> Any:
    """The replicas of the version.

    Raises:
        StoreError: there is no such run, or it has no export.
    """
    given = Arguments.model_validate(arguments)
    return version_application(_entry(given), given.settings, cpus=None)


def require_key(settings: Serve) -> None:
    """Refuse to listen on a network where nobody has to show a key.

    Raises:
        ServeError: none was ever made.
    """
    address.require_key(
        settings,
        fix="point SLIPWAY_ACCOUNTS to a PostgreSQL that all nodes reach, and run `slipway keys create` with it",
    )


def _entry(given: Arguments) -> Entry:
    """The one version of this Ray: of the export that was newest when the first of the builders looked."""
    if there := next((entry for entry in stored_table() if entry.app == given.application), None):
        return there
    export, _, name = find_export(Store(Path(given.store)), given.run)
    entry = replace(
        fleet.entry_of(export, given.settings, model=name, version="v1"),
        app=given.application,
    )
    store_table((entry,))
    return entry
