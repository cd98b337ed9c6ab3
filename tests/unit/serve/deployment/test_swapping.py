"""Other weights for replicas: all are ready before any takes them, and all have the same, whatever fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from export_fixtures import HEADS, SHAPES, tiny_export

from orchestrator.errors import ServeError, StoreError
from orchestrator.job import Serve
from orchestrator.serve.deployment import direct, swapping
from orchestrator.serve.deployment.table import Entry, Facts
from orchestrator.serve.engine.protocol import EngineError

OLD = Entry(
    model="m",
    version="v1",
    export="/one",
    share=1.0,
    app="m-1",
    facts=Facts(kind="decoder", fingerprint="fp_0", created=1),
)


class Replica:
    """What one has, and what it was told."""

    def __init__(
        self,
        *,
        refuses: StoreError | None = None,
        dies: Exception | None = None,
        fails: Exception | None = None,
    ) -> None:
        self.ready: str | None = None
        self.has = OLD.export
        self.refuses = refuses
        self.dies = dies
        self.fails = fails

    def make_ready(self, export: str) -> StoreError | None:
        if self.dies is not None:
            raise self.dies
        self.ready = None if self.refuses else export
        return self.refuses

    def swap(self, export: str) -> float | EngineError:
        if self.dies is not None:
            raise self.dies
        self.ready = None
        if self.fails is not None and export != OLD.export:
            if isinstance(self.fails, EngineError):
                return self.fails
            raise self.fails
        self.has = export
        return 0.01


@pytest.fixture
def export(tmp_path: Path) -> Path:
    return tiny_export(tmp_path)


@pytest.fixture
def replicas(monkeypatch: pytest.MonkeyPatch) -> list[Replica]:
    living: list[Replica] = []

    def call_each(app: str, method: str, *args: Any, timeout_s: float) -> list[Any]:
        """As `direct` has it: all are asked, and the first error is raised."""
        assert app == OLD.app
        found: list[Any] = []
        errors: list[Exception] = []
        for replica in living:
            try:
                found.append(getattr(replica, method)(*args))
            except Exception as error:  # noqa: BLE001 - raised below
                errors.append(error)
        if errors:
            raise errors[0]
        return found

    monkeypatch.setattr(direct, "call_each", call_each)
    return living


def test_all_are_ready_before_one_changes(replicas: list[Replica], export: Path) -> None:
    replicas += [Replica(), Replica()]
    assert swapping.make_ready(OLD, export, Serve())
    assert [(r.ready, r.has) for r in replicas] == [(str(export), "/one")] * 2
    assert swapping.swap(OLD, replace(OLD, export=str(export))) == 0.01
    assert [(r.ready, r.has) for r in replicas] == [(None, str(export))] * 2


def test_what_one_refuses_none_keeps(replicas: list[Replica], export: Path) -> None:
    replicas += [Replica(), Replica(refuses=StoreError("tensor x has another SHA-256"))]
    with pytest.raises(StoreError, match="tensor x"):
        swapping.make_ready(OLD, export, Serve())
    assert [(r.ready, r.has) for r in replicas] == [(None, "/one")] * 2


def test_where_one_dies_none_keeps_it_and_the_reason_is_said(replicas: list[Replica], export: Path) -> None:
    died = ray.exceptions.RayActorError(error_msg="it has died")
    replicas += [Replica(), Replica(dies=died)]
    with pytest.raises(ServeError, match="could not be proven by the replicas: it has died"):
        swapping.make_ready(OLD, export, Serve())
    assert (replicas[0].ready, replicas[0].has) == (None, "/one")


@pytest.mark.parametrize("error", [EngineError("another shape"), ray.exceptions.RayActorError(error_msg="it has died")])
def test_where_one_fails_all_go_back(replicas: list[Replica], export: Path, error: Exception) -> None:
    replicas += [Replica(), Replica(fails=error)]
    with pytest.raises(ServeError, match=r"v2 could not be swapped in: (another shape|it has died)"):
        swapping.swap(OLD, replace(OLD, version="v2", export=str(export)))
    assert [r.has for r in replicas] == ["/one"] * 2


def test_where_no_replica_runs_the_proof_is_made_here(replicas: list[Replica], export: Path) -> None:
    assert swapping.make_ready(OLD, export, Serve())
    (export / "tokenizer.json").write_text("{}")
    with pytest.raises(StoreError, match=r"tokenizer\.json"):
        swapping.make_ready(OLD, export, Serve())


def test_only_decoders_take_other_weights(replicas: list[Replica], export: Path, tmp_path: Path) -> None:
    replicas.append(Replica())
    encoder = tiny_export(tmp_path / "encoder", config=SHAPES["bert"], head=HEADS["classification"])
    assert not swapping.make_ready(OLD, encoder, Serve())
    assert not swapping.make_ready(
        replace(OLD, facts=Facts(kind="encoder", fingerprint="fp_0", created=1)), export, Serve()
    )
    assert replicas[0].ready is None
