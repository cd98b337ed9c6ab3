"""What a store holds now: what is remembered, and what has changed since, read anew. Never older than the folders."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.catalogue import database
from orchestrator.catalogue.facts import folders, read_facts
from orchestrator.catalogue.tables import Facts, Row
from orchestrator.store import Store

_SHOWN = (
    "run", "name", "job", "state", "step", "steps", "train_loss", "validation_loss", "tokens_per_s", "export",
    "dataset", "began_at", "worked_at",
)  # fmt: skip


@dataclass(frozen=True)
class Catalogue:
    """The rows of each table, as of one look."""

    tables: Mapping[str, Sequence[Row]]

    def runs(self) -> list[dict[str, Any]]:
        """A row for each run, the one that was last at work first, with its tags and where its exports are served."""
        tags = self._by("tags", "run")
        served = self._served()
        rows = [
            {
                **{name: row.get(name) for name in _SHOWN},
                "tags": sorted(one["tag"] for one in tags.get(row["run"], ())),
                "served": served.get(row["run"], []),
                **({"error": row["error"]} if row.get("error") else {}),
            }
            for row in self.tables.get("runs", ())
        ]
        rows.sort(key=lambda row: str(row["name"]))
        return sorted(rows, key=lambda row: str(row["worked_at"]), reverse=True)

    def about(self, run: str) -> dict[str, Any]:
        """Of one run, what no other verb tells: the commands that drove it, and what was made of it in other runs."""
        jobs = self._by("jobs", "run").get(run, [])
        began = [edge for edge in self.tables.get("lineage", ()) if edge["how"] == "began with"]
        return {
            "jobs": [{name: value for name, value in job.items() if name != "run"} for job in jobs],
            "children": sorted({edge["child"] for edge in began if edge["parent"].startswith(f"{run}/")}),
            "served": self._served().get(run, []),
        }

    def _served(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for service in self.tables.get("services", ()):
            run = str(service["export"]).partition("/export/")[0]
            found.setdefault(run, []).append(str(service["url"]))
        return {run: sorted(urls) for run, urls in found.items()}

    def _by(self, table: str, key: str) -> dict[str, list[Row]]:
        found: dict[str, list[Row]] = {}
        for row in self.tables.get(table, ()):
            found.setdefault(row[key], []).append(row)
        return found


def look(store: Store, *, services: Iterable[Row] = ()) -> Catalogue:
    """What a store holds now; remembers what it had to read, where the store lets it.

    `services` are the services of this machine: `url`, `port`, `model`, `export` (a path in the store), `state`,
    `started_at`. Those of other machines are what was last seen there.
    """
    known = database.read(store)
    there = folders(store)
    stale = [path for path, seen in there.items() if not seen or path not in known or known[path].seen != seen]
    read = [facts for path in stale if (facts := read_facts(store, path, there[path])) is not None]
    here = _of_this_machine(services)
    if here.rows or here.path in known:
        read.append(here)
    changed = [facts for facts in read if facts != known.get(facts.path)]
    gone = [path for path in known if path not in there and not path.startswith(_MACHINE)]
    if changed or gone:
        database.write(store, changed, gone)
    now = {**known, **{facts.path: facts for facts in read}}
    tables: dict[str, list[Row]] = {}
    for path, facts in now.items():
        for table, rows in facts.rows.items() if path not in gone else ():
            tables.setdefault(table, []).extend(rows)
    return Catalogue(tables)


_MACHINE = "services@"


def _of_this_machine(services: Iterable[Row]) -> Facts:
    host = socket.gethostname()
    return Facts.of(f"{_MACHINE}{host}", "", {"services": [{**service, "host": host} for service in services]})
