"""Completions made step by step, without a thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from model.decode_torch import TorchDecoder
from model.paged import Decoder, PagedCache
from orchestrator.export.prove import ProvenModel
from orchestrator.serve.engine.batch import Batch
from orchestrator.serve.engine.completion import Completion
from orchestrator.serve.engine.protocol import EngineError, Piece, Sampling
from orchestrator.serve.engine.writer import Writer

Run = Callable[..., list[list[Piece] | EngineError]]


def batch_of(
    proven: ProvenModel, *, decoder: Decoder | None = None, slots: int = 8, pages: int = 40, step_tokens: int = 48
) -> Batch:
    weights = proven.model.embed.weight
    cache = PagedCache.empty(proven.config, pages=pages, slots=slots, dtype=weights.dtype, device="cpu")
    decoder = decoder or TorchDecoder(proven.model)
    return Batch(decoder, cache, allowed_size=proven.allowed_size, step_tokens=step_tokens)


def run_all(
    proven: ProvenModel, asked: list[tuple[list[int], Sampling]], batch: Batch | None = None
) -> list[list[Piece] | EngineError]:
    """The pieces of each, all asked for at once; or the failure."""
    batch = batch or batch_of(proven)
    completions = [Completion.asked(proven, prompt, sampling) for prompt, sampling in asked]
    batch.waiting.extend(completions)
    writers = {each: Writer(proven.tokenizer, each.sampling, eos_id=proven.eos_id) for each in completions}
    found: dict[Completion, list[Piece] | EngineError] = {each: [] for each in completions}
    while batch.running or batch.waiting:
        for completion, result in batch.step():
            pieces = found[completion]
            if isinstance(result, EngineError):
                found[completion] = result
            elif isinstance(pieces, list) and not completion.cancelled:
                piece = Piece("", 0, result.reason)
                if result.token is not None:
                    piece = writers[completion].push(result.token, result.logprob)
                pieces.append(replace(piece, prompt_logprobs=result.prompt_logprobs))
                completion.cancelled = piece.finish_reason is not None
    return list(found.values())


@pytest.fixture
def batch_for() -> Callable[..., Batch]:
    return batch_of


@pytest.fixture
def run_batch() -> Run:
    return run_all


@pytest.fixture
def run() -> Callable[[ProvenModel, list[int], Sampling], list[Piece]]:
    """One completion alone."""

    def alone(proven: ProvenModel, prompt: list[int], sampling: Sampling) -> list[Piece]:
        (found,) = run_all(proven, [(prompt, sampling)])
        assert isinstance(found, list)
        return found

    return alone
