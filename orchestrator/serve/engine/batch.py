"""Completions that are worked on together: each step reads and makes tokens of all of them in one pass.

No threads and no clock: `Engine` calls `step` as long as there is work. Shapes: N tokens of a pass, R rows of logits,
V vocabulary, A allowed entries of it, D width.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from model.generate import token_logprobs
from model.logprob import TokenLogprob
from model.paged import PAGE_TOKENS, Decoder, PagedCache, Pass
from model.sampling import draw, penalise
from orchestrator.serve.engine.completion import Completion, Made
from orchestrator.serve.engine.pages import PagePool
from orchestrator.serve.engine.protocol import EngineError

_log = logging.getLogger(__name__)
_SCORED_ROWS = 256
"""Positions whose logits are held at once while a prompt is scored."""

Result = tuple[Completion, "Made | EngineError"]


@dataclass(frozen=True)
class _Part:
    """Tokens of one completion in a pass."""

    completion: Completion
    first: int
    """Position of the first."""
    count: int

    @property
    def makes(self) -> bool:
        """Whether nothing is left to be read, so that the next token may be made."""
        return self.count == self.completion.unread_tokens


class Batch:
    """Completions that run, and those that wait for it, first come first served."""

    def __init__(self, decoder: Decoder, cache: PagedCache, *, allowed_size: int, step_tokens: int) -> None:
        """At most as many run as the cache has slots; a pass has at most `step_tokens` tokens."""
        self.decoder = decoder
        self.waiting: deque[Completion] = deque()
        self.running: list[Completion] = []
        self.pool = PagePool(cache.pages, PAGE_TOKENS)
        self.prompt_tokens = 0
        self.cached_prompt_tokens = 0
        self._cache = cache
        self._slots = list(range(len(cache.tables_RM) - 1, -1, -1))
        self._allowed_size, self._step_tokens = allowed_size, step_tokens

    @torch.inference_mode()
    def step(self) -> list[Result]:
        """Drop who was cancelled, take in who has room, and make a token of each that was read."""
        for completion in [each for each in self.running if each.cancelled]:
            self._end(completion)
        self._admit()
        parts = self._plan()
        if not parts:
            return []
        results: list[Result] = []
        try:
            self._make(parts, results)
        except Exception as error:  # noqa: BLE001 - the clients of this pass must hear of it, and the thread live on
            _log.exception("a pass over %d completions failed", len(parts))
            failure = EngineError(f"{type(error).__name__} while generating")
            results += [self._fail(part.completion, failure) for part in parts if part.completion.holding is not None]
        return results

    def end_all(self, failure: EngineError) -> list[Result]:
        """Everything ends."""
        ended: list[Result] = [(each, failure) for each in (*self.running, *self.waiting)]
        for completion in list(self.running):
            self._end(completion)
        self.waiting.clear()
        return ended

    def _admit(self) -> None:
        while self.waiting and self._slots:
            completion = self.waiting[0]
            if not completion.cancelled:
                # Whoever wants the prompt scored needs all of it read.
                reuse = not completion.sampling.of_prompt
                holding = self.pool.hold(completion.prompt_T, room=completion.room, reuse=reuse)
                if holding is None:
                    return
                completion.holding, completion.read_tokens = holding, holding.found_tokens
                completion.slot = self._slots.pop()
                self._cache.assign(completion.slot, holding.pages)
                self.running.append(completion)
                self.prompt_tokens += len(completion.prompt_T)
                self.cached_prompt_tokens += holding.found_tokens
            self.waiting.popleft()

    def _end(self, completion: Completion, *, spoilt: bool = False) -> None:
        self.running.remove(completion)
        self._slots.append(completion.slot)
        assert completion.holding is not None
        left = self.pool.release(completion.holding, forget=spoilt)
        if spoilt:
            self._cache.wipe(left)
        completion.holding = None

    def _fail(self, completion: Completion, failure: EngineError) -> Result:
        self._end(completion, spoilt=True)
        return completion, failure

    def _plan(self) -> list[_Part]:
        """One token of each whose prompt is read; what is left of the pass to prompts, the oldest first."""
        ready = [_Part(each, each.read_tokens, 1) for each in self.running if each.made_T]
        left = self._step_tokens - len(ready)
        for completion in self.running:
            if not completion.made_T and left > 0:
                count = min(left, completion.unread_tokens)
                ready.append(_Part(completion, completion.read_tokens, count))
                left -= count
        return ready

    def _make(self, parts: list[_Part], results: list[Result]) -> None:
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        for part in parts:
            ids += part.completion.tokens(part.first, part.count)
            positions += range(part.first, part.first + part.count)
            slots += [part.completion.slot] * part.count
        x_ND = self.decoder.hidden(Pass.of(ids, positions, slots), self._cache)
        lasts, makers, at = [], [], 0
        for part in parts:
            if part.completion.sampling.of_prompt and not part.completion.made_T:
                self._score_prompt(part, x_ND[at : at + part.count])
            at += part.count
            if part.makes:
                lasts.append(at - 1)
                makers.append(part.completion)
            part.completion.read_tokens += part.count
        if makers:
            results.extend(self._tokens(makers, x_ND if len(lasts) == len(x_ND) else x_ND[lasts]))
        for part in parts:
            self._learn(part.completion)

    def _learn(self, completion: Completion) -> None:
        holding = completion.holding
        if holding is not None and completion.read_tokens // PAGE_TOKENS > holding.known:
            self.pool.learn(holding, completion.tokens(0, completion.read_tokens))

    def _score_prompt(self, part: _Part, x_TD: Tensor) -> None:
        completion = part.completion
        if part.first == 0:
            completion.prompt_logprobs.append(TokenLogprob(completion.prompt_T[0], None))
        for first in range(part.first, part.first + part.count, _SCORED_ROWS):
            next_T = completion.prompt_T[first + 1 : min(first + _SCORED_ROWS, part.first + part.count) + 1]
            if next_T:
                own_TD = x_TD[first - part.first :][: len(next_T)]
                completion.prompt_logprobs += self._logprobs(own_TD, next_T, completion.sampling.logprobs or 0)

    def _logprobs(self, x_TD: Tensor, tokens_T: list[int], top: int) -> list[TokenLogprob]:
        return token_logprobs(self.decoder.logits(x_TD), tokens_T, top=top, allowed_size=self._allowed_size)

    def _tokens(self, makers: list[Completion], x_RD: Tensor) -> Iterator[Result]:
        """The next token of each."""
        logits_RV = self.decoder.logits(x_RD)
        likeliest_R, largest_R = self.decoder.best(logits_RV, self._allowed_size)
        sound = [math.isfinite(largest) for largest in largest_R.tolist()]
        tokens = likeliest_R.tolist()
        self._draw(makers, logits_RV, sound, tokens)
        told = self._told(makers, logits_RV, sound, tokens)
        for row, completion in enumerate(makers):
            if sound[row]:
                yield completion, self._made(completion, tokens[row], told.get(row))
            else:
                yield self._fail(completion, EngineError("the network gave no numbers for this completion"))

    def _draw(self, makers: list[Completion], logits_RV: Tensor, sound: list[bool], tokens: list[int]) -> None:
        """Put into `tokens` what is drawn for those rows for which it is not just the likeliest."""
        rows = [row for row, each in enumerate(makers) if sound[row] and (each.altered or not each.choice.greedy)]
        if not rows:
            return
        logits_RA = logits_RV[rows, : self._allowed_size]
        for row, logits_A in zip(rows, logits_RA, strict=True):
            each = makers[row]
            if each.altered:
                read = set(each.prompt_T) if each.penalties.repetition != 1 else frozenset[int]()
                penalise(logits_A, each.penalties, read=read, made=each.counts(), barred=each.barred)
        greedy = [at for at, row in enumerate(rows) if makers[row].choice.greedy]
        for at in greedy:
            tokens[rows[at]] = int(logits_RA[at].argmax())
        drawn = [at for at, row in enumerate(rows) if not makers[row].choice.greedy]
        if drawn:
            each_drawn = [makers[rows[at]] for at in drawn]
            own_RA = logits_RA if len(drawn) == len(rows) else logits_RA[drawn]
            ids = draw(own_RA, [each.choice for each in each_drawn], [each.chances.random() for each in each_drawn])
            for at, id in zip(drawn, ids, strict=True):
                tokens[rows[at]] = id

    def _told(
        self, makers: list[Completion], logits_RV: Tensor, sound: list[bool], tokens: list[int]
    ) -> dict[int, TokenLogprob]:
        """The log-probabilities of the new tokens, of those rows that want them."""
        tops = {row: each.sampling.logprobs for row, each in enumerate(makers) if sound[row]}
        wanted = {row: top for row, top in tops.items() if top is not None}
        if not wanted:
            return {}
        rows = list(wanted)
        found = token_logprobs(
            logits_RV[rows], [tokens[row] for row in rows], top=max(wanted.values()), allowed_size=self._allowed_size
        )
        return {
            row: TokenLogprob(each.token, each.logprob, each.top[: wanted[row]])
            for row, each in zip(rows, found, strict=True)
        }

    def _made(self, completion: Completion, token: int, logprob: TokenLogprob | None) -> Made:
        prompt_logprobs = tuple(completion.prompt_logprobs) if not completion.made_T else ()
        if completion.sampling.max_tokens == 0:
            self._end_well(completion)
            return Made(None, "length", prompt_logprobs=prompt_logprobs)
        completion.made_T.append(token)
        reason = completion.ending.reason(token, len(completion.made_T))
        if reason is not None:
            self._end_well(completion)
        return Made(token, reason, logprob, prompt_logprobs)

    def _end_well(self, completion: Completion) -> None:
        self._learn(completion)
        self._end(completion)
