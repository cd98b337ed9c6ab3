"""vLLM behind `InferenceEngine`: token ids go in and come out, and text is made of them as of our own engine's.

Used where `serve.engine` asks for it, and the user has installed it: nothing of vLLM is imported before. Written for
its public `AsyncLLM`, of version 0.32. vLLM computes in processes of its own, which end with this one.

Shapes: T tokens of a prompt.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import time
import uuid
from collections.abc import AsyncGenerator
from collections.abc import Sequence as Ids
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from model.paged import cache_bytes_per_token
from orchestrator.errors import ServeError
from orchestrator.export.folder import INDEX, PROBE, read_tensors
from orchestrator.export.prove import ProvenModel
from orchestrator.job import Serve
from orchestrator.serve.engine.completion import Completion, Made
from orchestrator.serve.engine.installed import require_vllm
from orchestrator.serve.engine.protocol import EngineBusyError, EngineError, Load, Piece, Sampling
from orchestrator.serve.engine.tickets import piece_of
from orchestrator.serve.engine.vllm_terms import MAX_ALTERNATIVES, alike, made_of, parameters, prompt_logprobs
from orchestrator.serve.engine.writer import Writer

_CACHE_BYTES = 2**30
_BLOCK_TOKENS = 128
"""vLLM's on a CPU; on a GPU it is a divisor of this."""
_LOOK_AGAIN_S = 0.005
_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",  # it would tell its makers what runs here
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else each replica takes the same first cores
}


@dataclass(eq=False)
class _UnderWay:
    """One completion, as far as its load is told."""

    completion: Completion
    made_tokens: int = 0
    began_at: float = field(default_factory=time.monotonic)


class VllmEngine:
    """One vLLM for one export. See `InferenceEngine`. For one event loop, in which it is made."""

    def __init__(self, proven: ProvenModel, export: Path, settings: Serve, *, max_waiting: int) -> None:
        """Starts vLLM; returns when it has read the weights.

        Args:
            proven: of the export; its weights are let go of.
            export: what vLLM opens.
            settings: precision, cores and the largest number of requests.
            max_waiting: completions that may wait beside those; more are refused as busy.

        Raises:
            ServeError: it is not installed, or does not start.
        """
        require_vllm()
        _require_index(export)
        proven.model.to("meta")  # vLLM has its own
        self._proven, self._export, self._precision = proven, export, settings.precision
        self._most, self._max_running = settings.max_ongoing_requests + max_waiting, settings.max_ongoing_requests
        os.environ.update({**_ENVIRONMENT, "OMP_NUM_THREADS": str(settings.cpus)})
        try:
            self._llm = _start(proven, export, settings)
        except Exception as error:
            raise ServeError(
                f"vLLM does not serve {export.name}: {type(error).__name__}: {error}",
                fix="read the log of the replica above this, or leave serve.engine out",
            ) from error
        cache = self._llm.vllm_config.cache_config
        self._cache_tokens = int(cache.num_gpu_blocks * cache.block_size)
        self._under_way: list[_UnderWay] = []
        self._agrees = False
        self._outputs = self._requests = 0
        self._prompt_tokens = self._cached_tokens = self._completion_tokens = 0

    async def generate(self, prompt_T: Ids[int], sampling: Sampling) -> AsyncGenerator[Piece, None]:
        """See `InferenceEngine`.

        Raises:
            EngineBusyError: too many wait already.
        """
        completion = Completion.asked(self._proven, prompt_T, sampling)
        if sampling.max_tokens == 0 and not sampling.of_prompt:
            yield Piece("", 0, "length")
            return
        if len(self._under_way) >= self._most:
            raise EngineBusyError("too many completions wait for the engine; try again in a moment")
        own = _UnderWay(completion)
        self._under_way.append(own)
        try:
            async with aclosing(self._pieces(own)) as pieces:
                async for piece in pieces:
                    self._completion_tokens += piece.tokens
                    yield piece
        finally:
            self._under_way.remove(own)
            self._requests += 1

    async def check(self, *, timeout_s: float) -> None:
        """See `InferenceEngine`; the first time it must agree with the export's probe besides."""
        try:
            await asyncio.wait_for(self._moves(), timeout_s)
        except asyncio.TimeoutError:
            raise EngineError(f"vLLM made no token in {timeout_s} s") from None

    def load(self) -> Load:
        """How busy it is. Its cache and steps are vLLM's own: what is told of them is reckoned from the requests."""
        now = time.monotonic()
        begun = [each for each in self._under_way if each.made_tokens]
        unbegun = [each for each in self._under_way if not each.made_tokens]
        waits = unbegun[max(0, self._max_running - len(begun)) :]
        return Load(
            running=len(self._under_way) - len(waits),
            waiting=len(waits),
            tokens_in_flight=sum(_tokens_to_come(each) for each in self._under_way),
            cache_tokens=sum(len(each.completion.prompt_T) + each.made_tokens for each in begun),
            cache_limit_tokens=self._cache_tokens,
            oldest_wait_s=max((now - each.began_at for each in waits), default=0.0),
            requests=self._requests,
            prompt_tokens=self._prompt_tokens,
            cached_prompt_tokens=self._cached_tokens,
            completion_tokens=self._completion_tokens,
            steps=self._outputs,
            last_step_s=0.0,
            compiled=False,
        )

    def swap(self, proven: ProvenModel) -> float:
        """Raise EngineError: replicas with other weights are started beside this one instead."""
        raise EngineError("vLLM keeps the weights that it was started with")

    def close(self) -> None:
        """End vLLM's processes."""
        self._llm.shutdown()

    async def _pieces(self, own: _UnderWay) -> AsyncGenerator[Piece, None]:
        proven, asked = self._proven, own.completion
        writer = Writer(proven.tokenizer, asked.sampling, eos_id=proven.eos_id)
        scored = asked.sampling.max_tokens == 0
        async with aclosing(self._outputs_of(asked.prompt_T, asked.sampling)) as outputs:
            async for output in outputs:
                made = made_of(output, asked.prompt_T, asked.sampling, allowed=proven.allowed_size)
                if not own.made_tokens:
                    self._prompt_tokens += len(asked.prompt_T)
                    self._cached_tokens += output.num_cached_tokens or 0
                own.made_tokens += len(made)
                if scored:
                    made = [Made(None, "length", None, made[0].prompt_logprobs)]
                piece = piece_of([*made], writer)
                yield piece
                if piece.finish_reason is not None:
                    return
        raise EngineError("vLLM ended a completion before its end")

    async def _outputs_of(self, prompt_T: list[int], sampling: Sampling) -> AsyncGenerator[Any, None]:
        """vLLM's `RequestOutput`s, each with the tokens that are new.

        Raises:
            EngineError: whatever it raises.
        """
        given = parameters(sampling, self._proven)
        kinds = importlib.import_module("vllm.sampling_params")
        asked = kinds.SamplingParams(**given, output_kind=kinds.RequestOutputKind.DELTA)
        name = uuid.uuid4().hex
        prompt = importlib.import_module("vllm.inputs").tokens_input(prompt_T)
        try:
            async with aclosing(self._llm.generate(prompt, asked, name)) as outputs:
                async for output in outputs:
                    self._outputs += 1
                    if output.outputs[0].token_ids:
                        yield output
        except Exception as error:
            raise EngineError(f"vLLM failed on this completion: {type(error).__name__}") from error

    async def _moves(self) -> None:
        if not self._agrees:
            await self._require_agreement()
            self._agrees = True
        before = self._outputs
        while self._under_way:
            if self._outputs > before:
                return
            await asyncio.sleep(_LOOK_AGAIN_S)
        async for _ in self.generate([self._proven.eos_id], Sampling(max_tokens=1, temperature=0.0)):
            pass

    async def _require_agreement(self) -> None:
        """What vLLM says of the probe's prompts must be what the export says.

        Raises:
            EngineError: it is not.
        """
        probe = read_tensors(self._export / PROBE)
        want_BTV = probe["logits"].log_softmax(-1)
        asked = Sampling(max_tokens=0, temperature=0.0, logprobs=0, of_prompt=True)
        for prompt_T, want_TV in zip(probe["input_ids"].tolist(), want_BTV, strict=True):
            # One less than the context: vLLM makes a token beside.
            short_T = prompt_T[: self._proven.config.context - 1]
            async for output in self._outputs_of(short_T, asked):
                told = prompt_logprobs(output, short_T, asked, allowed=self._proven.allowed_size)
                if difference := alike(told, want_TV, exact=self._precision == "fp32"):
                    raise EngineError(f"vLLM computes something else than {self._export.name} does: {difference}")


def _tokens_to_come(each: _UnderWay) -> int:
    unread = 0 if each.made_tokens else len(each.completion.prompt_T)
    return unread + max(0, each.completion.sampling.max_tokens - each.made_tokens)


def _require_index(export: Path) -> None:
    if not (export / INDEX).is_file():
        raise ServeError(
            f"{export} has no {INDEX}, by which vLLM tells weights from the probe: an older version wrote it",
            fix="delete this folder and export the run again",
        )


def _start(proven: ProvenModel, export: Path, settings: Serve) -> Any:
    """An `AsyncLLM`; blocks until its weights are read."""
    config, gpus = proven.config, settings.gpus
    dtype = torch.float32 if settings.precision == "fp32" else torch.bfloat16
    tokens = settings.cache_tokens
    if tokens is None and not gpus:  # as our engine; on a GPU vLLM takes what is free
        affordable = _CACHE_BYTES // cache_bytes_per_token(config, dtype)
        tokens = max(config.context, min(settings.max_ongoing_requests * config.context, affordable))
    room: dict[str, Any] = {}
    if tokens is not None:
        blocks = -(-tokens // _BLOCK_TOKENS) + 1  # one of them vLLM keeps empty
        room["kv_cache_memory_bytes"] = blocks * _BLOCK_TOKENS * cache_bytes_per_token(config, dtype)
    arguments = importlib.import_module("vllm.engine.arg_utils").AsyncEngineArgs(
        model=str(export),
        dtype="float32" if settings.precision == "fp32" else "bfloat16",
        max_model_len=config.context,
        max_num_seqs=settings.max_ongoing_requests,
        max_logprobs=MAX_ALTERNATIVES,
        tensor_parallel_size=max(1, gpus),
        skip_tokenizer_init=True,  # tokens go in and come out
        generation_config="vllm",  # requests say how they are drawn, and no file does
        disable_log_stats=True,
        **room,
    )
    return importlib.import_module("vllm.v1.engine.async_llm").AsyncLLM.from_engine_args(arguments)
