"""A tiny model for the engine's tests, as a replica would have it."""

from __future__ import annotations

import pytest
from export_fixtures import TEXTS, tiny_export
from tokenizers import Tokenizer

from orchestrator.data.tokens.tokenizer import train_bpe
from orchestrator.export.prove import ProvenModel, load_proven


@pytest.fixture
def anyio_backend() -> str:
    """Tests that are coroutines run on asyncio (anyio's pytest plugin comes with starlette)."""
    return "asyncio"


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_str(train_bpe(TEXTS, 300))


@pytest.fixture(scope="session")
def proven(tmp_path_factory: pytest.TempPathFactory) -> ProvenModel:
    return load_proven(tiny_export(tmp_path_factory.mktemp("served")))
