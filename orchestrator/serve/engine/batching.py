"""The engine of a replica: a thread that works on all completions at once, and the coroutines that wait for it."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from collections.abc import Sequence as Ids
from functools import partial

import torch

from model.decode_native import NativeDecoder
from model.paged import PAGE_TOKENS, Decoder, PagedCache, Pass, cache_bytes_per_token
from orchestrator.errors import ServeError
from orchestrator.export.prove import ProvenModel
from orchestrator.serve.engine.batch import Batch
from orchestrator.serve.engine.completion import Completion
from orchestrator.serve.engine.decoders import BuildError, Sizes, decoder_at_once, decoder_compiled, suits_native
from orchestrator.serve.engine.protocol import EngineBusyError, EngineError, Load, Piece, Sampling
from orchestrator.serve.engine.tickets import Delivery, Order, Ticket, hand_out, piece_of
from orchestrator.serve.engine.writer import Writer

_log = logging.getLogger(__name__)
_CACHE_BYTES = 2**30
"""Of keys and values, where nothing is said and more would be wanted."""
_LOOK_AGAIN_S = 0.005


class Engine:
    """Continuous batching over one model. See `InferenceEngine`, and docs/engine.md."""

    def __init__(
        self,
        proven: ProvenModel,
        *,
        threads: int,
        max_running: int = 32,
        max_waiting: int = 256,
        cache_tokens: int | None = None,
        step_tokens: int = 256,
        int8: bool = False,
    ) -> None:
        """Starts the thread; it is ready when this returns.

        Args:
            threads: cores that it computes on.
            max_running: completions in one step.
            max_waiting: completions that may wait beside these; more are refused as busy.
            cache_tokens: keys and values in memory, of all completions and of prompts that may come again; None: what
                `max_running` may need at most, and no more than 1 GiB unless one context alone needs it.
            step_tokens: read and made in one step, which prompts share with completions under way.
            int8: keep matrices in 8 bits.

        Raises:
            ServeError: the settings do not go together.
        """
        self._proven = proven
        step_tokens = max(step_tokens, max_running + 1)  # prompts are never kept out for ever
        self._sizes = Sizes(threads=threads, most_tokens=step_tokens, int8=int8)
        self._most = max_running + max_waiting
        torch.set_num_threads(threads)
        decoder = decoder_at_once(proven.model, self._sizes)
        cache = _cache(proven, max_running, cache_tokens, dtype=proven.model.embed.weight.dtype)
        self._batch = Batch(decoder, cache, allowed_size=proven.allowed_size, step_tokens=step_tokens)
        self._cache_limit_tokens = cache.pages * PAGE_TOKENS
        self._tickets: dict[Completion, Ticket] = {}
        self._arrived: deque[Ticket] = deque()
        self._orders: deque[Order] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._steps, self._last_step_s = 0, 0.0
        self._requests, self._completion_tokens = 0, 0
        # The first pass allocates, and chooses kernels: not at a client's expense.
        decoder.logits(decoder.hidden(Pass.of([0], [0], [0]), cache))
        self._thread = threading.Thread(target=self._run, name="slipway-engine", daemon=True)
        self._outbox: queue.SimpleQueue[list[Delivery] | None] = queue.SimpleQueue()
        self._delivery = threading.Thread(target=self._deliver, name="slipway-delivery", daemon=True)
        self._thread.start()
        self._delivery.start()
        if suits_native(proven.model) and not isinstance(decoder, NativeDecoder):
            threading.Thread(target=self._compile, name="slipway-compile", daemon=True).start()

    async def generate(self, prompt_T: Ids[int], sampling: Sampling) -> AsyncGenerator[Piece, None]:
        """See `InferenceEngine`.

        Raises:
            EngineBusyError: too many wait already.
        """
        completion = Completion.asked(self._proven, prompt_T, sampling)
        if sampling.max_tokens == 0 and not sampling.of_prompt:
            yield Piece("", 0, "length")
            return
        ticket = self._enter(completion)
        writer = Writer(self._proven.tokenizer, sampling, eos_id=self._proven.eos_id)
        try:
            while True:
                piece = piece_of(await ticket.take(), writer)
                self._completion_tokens += piece.tokens
                yield piece
                if piece.finish_reason is not None:
                    return
        finally:
            completion.cancelled = True
            self._tickets.pop(completion, None)
            self._requests += 1

    async def check(self, *, timeout_s: float) -> None:
        """See `InferenceEngine`. While it is at work, a step that ends says as much as a token of our own."""
        try:
            await asyncio.wait_for(self._moves(), timeout_s)
        except asyncio.TimeoutError:
            raise EngineError(f"the engine made no token in {timeout_s} s") from None

    def load(self) -> Load:
        """How busy it is; from any thread, at any time."""
        batch = self._batch
        running, waiting = list(batch.running), [*batch.waiting, *(each.completion for each in list(self._arrived))]
        now = time.monotonic()
        return Load(
            running=len(running),
            waiting=len(waiting),
            tokens_in_flight=sum(each.tokens_to_come for each in (*running, *waiting)),
            cache_tokens=batch.pool.held * PAGE_TOKENS,
            cache_limit_tokens=self._cache_limit_tokens,
            oldest_wait_s=max((now - each.came_at for each in waiting), default=0.0),
            requests=self._requests,
            prompt_tokens=batch.prompt_tokens,
            cached_prompt_tokens=batch.cached_prompt_tokens,
            completion_tokens=self._completion_tokens,
            steps=self._steps,
            last_step_s=self._last_step_s,
            compiled=isinstance(batch.decoder, NativeDecoder),
        )

    def swap(self, proven: ProvenModel) -> float:
        """Go on with other weights of the same shape and the same tokenizer; blocks until that is so.

        Completions under way keep what they have read and made. Returns the seconds for which no step could begin.

        Raises:
            EngineError: the shapes differ, or the engine has ended.
        """
        mine = self._proven
        if (proven.config, proven.allowed_size, proven.eos_id) != (mine.config, mine.allowed_size, mine.eos_id):
            raise EngineError("weights can be swapped for those of the same shape and tokenizer only")
        if isinstance(self._batch.decoder, NativeDecoder):
            torch.set_num_threads(1)  # those that compute need their cores while this thread packs
        decoder, before = decoder_at_once(proven.model, self._sizes), self._batch.decoder

        def take_over() -> None:
            self._proven = proven
            self._use(decoder)
            self._batch.pool.forget_all()

        paused_s = self._between_steps(take_over)
        del before  # here, and not between two steps: much memory is given back
        return paused_s

    def close(self) -> None:
        """End the thread; completions under way fail."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        self._delivery.join()

    def _enter(self, completion: Completion) -> Ticket:
        ticket = Ticket(completion)
        with self._changed:
            self._refuse_if_ended()
            if len(self._tickets) >= self._most:
                raise EngineBusyError("too many completions wait for the engine; try again in a moment")
            self._tickets[completion] = ticket
            self._arrived.append(ticket)
            self._changed.notify()
        return ticket

    async def _moves(self) -> None:
        steps = self._steps
        while self._tickets:
            if self._steps > steps:
                return
            await asyncio.sleep(_LOOK_AGAIN_S)
        async for _ in self.generate([self._proven.eos_id], Sampling(max_tokens=1, temperature=0.0)):
            pass

    def _compile(self) -> None:
        """Put the compiled decoder in the place of the first one, in some seconds."""
        try:
            while not isinstance(first := self._batch.decoder, NativeDecoder):
                better = decoder_compiled(self._proven.model, self._sizes)
                self._between_steps(partial(self._improve, first, better))
        except BuildError as error:
            _log.warning("completions are made without the compiled decoder: %s", error)
        except EngineError:
            return  # it has ended meanwhile

    def _improve(self, first: Decoder, better: Decoder) -> None:
        if self._batch.decoder is first:  # and not yet that of other weights
            self._use(better)

    def _use(self, decoder: Decoder) -> None:
        """From the engine's thread."""
        self._batch.decoder = decoder
        # The compiled one has threads of its own; torch's would wait beside them, and take their cores while they do.
        torch.set_num_threads(1 if isinstance(decoder, NativeDecoder) else self._sizes.threads)

    def _between_steps(self, work: Callable[[], None]) -> float:
        order = Order(work)
        with self._changed:
            self._refuse_if_ended()
            self._orders.append(order)
            self._changed.notify()
        return order.seconds.result()

    def _refuse_if_ended(self) -> None:
        if self._closing or not self._thread.is_alive():
            raise EngineError("the engine has ended")

    def _run(self) -> None:
        self._use(self._batch.decoder)
        while self._take_in():
            start = time.perf_counter()
            results = self._batch.step()
            self._last_step_s = time.perf_counter() - start
            self._steps += 1
            self._outbox.put([(self._tickets.get(completion), result) for completion, result in results])
        ended = EngineError("the service is shutting down")
        self._outbox.put([(ticket, ended) for ticket in list(self._tickets.values())])
        self._outbox.put(None)
        for order in self._orders:
            order.seconds.set_exception(EngineError("the engine has ended"))

    def _deliver(self) -> None:
        """In a thread of its own: waking an event loop hands it the interpreter, while the next step could begin."""
        while (results := self._outbox.get()) is not None:
            hand_out(results)

    def _take_in(self) -> bool:
        """Wait until there is work and take in what has come; False when the engine is closed."""
        batch = self._batch
        with self._changed:
            while not (self._closing or self._orders or self._arrived or batch.running or batch.waiting):
                self._changed.wait()
            if self._closing:
                return False
            while self._arrived:
                batch.waiting.append(self._arrived.popleft().completion)
            orders, self._orders = self._orders, deque()
        for order in orders:
            order.carry_out()
        return True


def _cache(proven: ProvenModel, max_running: int, cache_tokens: int | None, *, dtype: torch.dtype) -> PagedCache:
    """Raises a ServeError where not even one context has room."""
    config, context = proven.config, -(-proven.config.context // PAGE_TOKENS) * PAGE_TOKENS
    if cache_tokens is None:
        affordable = _CACHE_BYTES // cache_bytes_per_token(config, dtype)
        cache_tokens = max(context, min(max_running * context, affordable))
    if cache_tokens < context:
        raise ServeError(
            f"a cache of {cache_tokens} tokens does not hold the context of {config.context}",
            fix=f"let it hold {context} tokens or more",
        )
    device = proven.model.embed.weight.device
    return PagedCache.empty(config, pages=cache_tokens // PAGE_TOKENS, slots=max_running, dtype=dtype, device=device)
