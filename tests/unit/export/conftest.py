"""One export for the tests that only read it; those that alter one get a copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from export_fixtures import tiny_export


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_export(tmp_path_factory.mktemp("pristine"))


@pytest.fixture
def export(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "export"))
