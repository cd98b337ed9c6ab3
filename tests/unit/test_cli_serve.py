"""What `slipway serve` and `rollback` understand; what they do with a service is an integration test."""

from __future__ import annotations

from pathlib import Path

import pytest
from export_fixtures import tiny_export
from harness import free_port
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.cli_serve import parse_share, parse_span
from orchestrator.errors import JobError, ServeError
from orchestrator.serve.engine import installed


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("text", "share"), [("5%", 0.05), ("100%", 1.0), (" 0.5% ", 0.005), ("0.05", 0.05), ("1", 1.0)]
)
def test_shares(text: str, share: float) -> None:
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["0%", "101%", "5", "-5%", "five", "", "nan%", "5 %%"])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(JobError, match="is no share"):
        parse_share(text)


@pytest.mark.parametrize(("text", "seconds"), [("2m", 120.0), ("90s", 90.0), ("1.5h", 5400.0), ("500ms", 0.5)])
def test_spans(text: str, seconds: float) -> None:
    assert parse_span(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["2", "0s", "m", "2 minutes", "-1s", ""])
def test_what_is_no_span(text: str) -> None:
    with pytest.raises(JobError, match="is no span of time"):
        parse_span(text)


def test_mistakes_are_named() -> None:
    run = CliRunner().invoke(app, ["serve"])
    assert isinstance(run.exception, JobError)
    assert "serve needs a RUN" in str(run.exception)
    run = CliRunner().invoke(app, ["serve", "x", "--for", "2m"])
    assert isinstance(run.exception, JobError)
    run = CliRunner().invoke(app, ["rollback", "tiny"])
    assert isinstance(run.exception, ServeError)
    assert "no service of ours has a model tiny" in str(run.exception)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--for", "2m"], "--for says how long a version is watched, and none is"),
        (["--shadow"], "nothing of ours runs on port"),
        (["--canary", "5%"], "nothing of ours runs on port"),
        (["--shadow", "--canary", "5%", "--for", "2"], "is no span of time"),
        (["--engine", "turbo"], "--engine turbo: Input should be 'slipway' or 'vllm'"),
    ],
)
def test_how_a_version_is_tried_out_and_computed_is_checked_first(given: list[str], told: str, tmp_path: Path) -> None:
    export = tiny_export(tmp_path)
    run = CliRunner().invoke(app, ["serve", str(export), "--port", str(free_port()), *given])
    assert isinstance(run.exception, JobError)
    assert told in str(run.exception)


def test_vllm_has_to_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed.importlib.util, "find_spec", lambda name: None)
    run = CliRunner().invoke(app, ["serve", str(tiny_export(tmp_path)), "--engine", "vllm"])
    assert isinstance(run.exception, ServeError)
    assert (run.exception.exit_code, "pip install vllm" in str(run.exception.fix)) == (7, True)
