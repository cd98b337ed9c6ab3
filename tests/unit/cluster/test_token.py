"""Ray's token: for its owner alone from the first byte."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from orchestrator.cluster.token import ensure_token, is_exposed, token_path


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "ray" / "auth_token"))
    return tmp_path / "ray" / "auth_token"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_it_is_made_for_the_owner_alone(path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        assert ensure_token() == path
    finally:
        os.umask(before)
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)
    assert len(path.read_text()) == 64
    assert not is_exposed(path)


def test_one_that_is_there_is_kept(path: Path) -> None:
    ensure_token()
    token = path.read_text()
    assert ensure_token() == path
    assert path.read_text() == token


def test_two_machines_have_two_tokens(path: Path) -> None:
    ensure_token()
    token = path.read_text()
    path.unlink()
    ensure_token()
    assert path.read_text() != token


@pytest.mark.parametrize("exposed", [0o644, 0o640, 0o606])
def test_one_that_others_may_read_is_tightened(path: Path, exposed: int) -> None:
    ensure_token()
    token = path.read_text()
    path.chmod(exposed)
    assert is_exposed(path)
    ensure_token()
    assert (mode(path), path.read_text()) == (0o600, token)


def test_a_token_in_the_environment_needs_no_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert ensure_token() is None
    assert not path.exists()


def test_ray_looks_at_home_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert token_path() == tmp_path / ".ray" / "auth_token"
