"""The engine of an encoder: one compute thread that pads what waits to a batch, and reads it in one pass.

Shapes: B texts, T tokens, D width, C classes.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import queue
import sys
import threading
from collections.abc import Sequence as Ids
from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.heads import Embedder, EncoderHead, HeadConfig
from orchestrator.export.prove import Proven
from orchestrator.serve.engine.encoder_protocol import Encoded
from orchestrator.serve.engine.protocol import EngineBusyError, EngineError

_BATCH_TOKENS = 2048
"""Of one pass, padding among them: larger ones are no faster on a core, and others would wait for them."""
_WAITING_TEXTS = 8192
"""More are refused: their clients had better come back later."""
_AT_ONCE, _LAST = 0, sys.maxsize
"""Turns of a check, which is read before all that waits, and of the end."""
_log = logging.getLogger(__name__)


@dataclass
class _Text:
    """One text between the event loop, which waits for its outcome, and the compute thread."""

    ids: Ids[int]
    outcome: asyncio.Future[list[float]]
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    def put(self, outcome: list[float] | EngineError) -> None:
        """From the compute thread. A loop that was closed has no reader left."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._set, outcome)

    def _set(self, outcome: list[float] | EngineError) -> None:
        if self.outcome.done():
            return
        if isinstance(outcome, EngineError):
            self.outcome.set_exception(outcome)
        else:
            self.outcome.set_result(outcome)


_Place = tuple[int, int, _Text | None]
"""A text's turn, its number, by which those of the same turn are read, and the text; None: the engine is closed."""


class EncoderEngine:
    """Batches the texts of all requests; a text's numbers do not depend on its neighbours but for rounding.

    The texts of a request take turns with those of the others: a long list holds nobody up.
    """

    def __init__(self, proven: Proven[EncoderHead], *, threads: int) -> None:
        """Starts the compute thread; torch computes on `threads` cores.

        A network that does not classify texts embeds them, whatever its head: by the mean of their tokens' vectors.
        """
        self._classifies = proven.model.head.kind == "classification"
        self._model = proven.model if self._classifies else _embedder(proven.model)
        self._probe = proven.eos_id
        self._threads = threads
        self._inbox: queue.PriorityQueue[_Place] = queue.PriorityQueue()
        self._turn = _AT_ONCE
        """The latest that a text was taken in."""
        self._numbers = itertools.count()
        self._thread = threading.Thread(target=self._run, name="slipway-encoder", daemon=True)
        self._thread.start()

    async def encode(self, prompts_B: Ids[Ids[int]]) -> Encoded:
        """See the protocol."""
        if self._inbox.qsize() + len(prompts_B) > _WAITING_TEXTS:
            raise EngineBusyError(f"{self._inbox.qsize()} texts wait already")
        rows = await self._rows(prompts_B, first=self._turn + 1)
        return Encoded(logits_BC=rows) if self._classifies else Encoded(vectors_BD=rows)

    async def check(self, *, timeout_s: float) -> None:
        """See the protocol."""
        try:
            # Before all that waits: that there is much to do is no failure.
            await asyncio.wait_for(self._rows([[self._probe]], first=_AT_ONCE), timeout_s)
        except asyncio.TimeoutError:
            raise EngineError(f"the engine read nothing in {timeout_s} s") from None

    async def _rows(self, prompts_B: Ids[Ids[int]], *, first: int) -> list[list[float]]:
        """What is read of each text; `first` is the turn of the first one."""
        if not self._thread.is_alive():
            raise EngineError("the engine has ended")
        texts = [_Text(ids, asyncio.get_running_loop().create_future()) for ids in prompts_B]
        for turn, text in enumerate(texts, first):
            self._inbox.put((turn, next(self._numbers), text))
        return await asyncio.gather(*(text.outcome for text in texts))

    def close(self) -> None:
        """End the compute thread, once it has read what waits."""
        self._inbox.put((_LAST, next(self._numbers), None))
        self._thread.join()

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        while batch := self._next_batch():
            waiting = [text for text in batch if not text.outcome.cancelled()]
            if not waiting:
                continue
            try:
                rows = self._read([text.ids for text in waiting])
            except EngineError as error:
                _fail(waiting, error)
            except Exception as error:  # noqa: BLE001 - a batch's failure must reach its clients and leave the thread alive
                _log.error("a batch failed with %s", type(error).__name__)
                _fail(waiting, EngineError(f"{type(error).__name__} while encoding"))
            else:
                for text, row in zip(waiting, rows, strict=True):
                    text.put(row)

    def _next_batch(self) -> list[_Text]:
        """What waits, as far as it fits into one pass; waits for one if there is none. Empty: the engine is closed."""
        batch: list[_Text] = []
        longest = 0
        while not batch or not self._inbox.empty():
            place = turn, _, text = self._inbox.get()
            longest = max(longest, 0 if text is None else len(text.ids))
            if text is None or (batch and longest * (len(batch) + 1) > _BATCH_TOKENS):
                if batch:
                    self._inbox.put(place)
                break
            batch.append(text)
            self._turn = max(self._turn, turn)
        return batch

    @torch.inference_mode()
    def _read(self, prompts_B: Ids[Ids[int]]) -> list[list[float]]:
        longest = max(map(len, prompts_B))
        device = next(self._model.parameters()).device
        # Padding may be any token: the mask hides it.
        ids_BT = torch.full((len(prompts_B), longest), self._probe, device=device)
        mask_BT = torch.zeros_like(ids_BT)
        for row, ids in enumerate(prompts_B):
            ids_BT[row, : len(ids)] = torch.tensor(ids, device=device)
            mask_BT[row, : len(ids)] = 1
        outputs: dict[str, Tensor] = self._model(ids_BT, torch.zeros_like(ids_BT), mask_BT)
        rows = outputs["logits" if self._classifies else "embeddings"].float()
        if not bool(torch.isfinite(rows).all()):
            raise EngineError("the network computes what is no number")
        found: list[list[float]] = rows.cpu().tolist()
        return found


def _embedder(model: EncoderHead) -> EncoderHead:
    """The same backbone, without what stands on it."""
    if model.head.kind == "embedding":
        return model
    with torch.device("meta"):  # weights of its own would be drawn, and thrown away
        embedder = Embedder(model.config, HeadConfig("embedding"))
    embedder.backbone = model.backbone
    return embedder.eval()


def _fail(texts: list[_Text], error: EngineError) -> None:
    for text in texts:
        text.put(error)
