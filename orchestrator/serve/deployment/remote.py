"""The engine as the gateway has it: replicas elsewhere, asked through Ray Serve. Imports no torch."""

from __future__ import annotations

import asyncio
from asyncio import CancelledError
from collections.abc import AsyncGenerator
from collections.abc import Sequence as Ids
from contextlib import suppress
from functools import cached_property
from typing import Any

from ray.exceptions import GetTimeoutError, NodeDiedError, OwnerDiedError, RayActorError, RayError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from orchestrator.serve.deployment.pace import SIGN
from orchestrator.serve.engine.encoder_protocol import Encoded
from orchestrator.serve.engine.protocol import EngineBusyError, EngineError, Load, Piece, Sampling

DEPLOYMENT = "engine"
"""The name that the replicas of every version's application have there."""
_ATTEMPTS = 4
_PAUSE_S = 0.1
"""Before another replica is asked: by then Ray Serve knows that the first one is gone."""
_LOADS_S = 2.0
_LOST = (RayActorError, WorkerCrashedError, NodeDiedError, OwnerDiedError, ReplicaUnavailableError, CancelledError)


class RemoteEngine:
    """The replicas of one version as one engine. A request whose replica dies goes to another if nothing was told."""

    def __init__(self, handle: Any) -> None:
        """`handle` is Ray Serve's, of the replicas: `handle_of`. Made in any thread, asked in an event loop.

        `_by_reference=False` has Serve ask the replicas through gRPC of its own, with Ray's token, instead of by tasks
        of Ray's: half the processor time for each message.
        """
        self._handle = handle

    @cached_property
    def _generate(self) -> Any:
        return self._handle.options(method_name="generate", stream=True, _by_reference=False)

    @cached_property
    def _check(self) -> Any:
        return self._handle.options(method_name="check", _by_reference=False)

    @cached_property
    def _predict(self) -> Any:
        return self._handle.options(method_name="predict", _by_reference=False)

    @cached_property
    def _encode(self) -> Any:
        return self._handle.options(method_name="encode", _by_reference=False)

    async def generate(self, prompt_T: Ids[int], sampling: Sampling) -> AsyncGenerator[Piece, None]:
        """See `InferenceEngine`."""
        for attempt in range(_ATTEMPTS):
            told, ended, call = False, False, self._generate.remote(list(prompt_T), sampling)
            try:
                async for piece in call:
                    if isinstance(piece, EngineError):
                        raise piece
                    told, ended = told or piece != SIGN, piece.finish_reason is not None
                    yield piece
                return
            except EngineError:
                raise
            except BackPressureError as error:
                raise _busy() from error
            except _LOST as error:
                _raise_if_ours(error)
                if told or attempt == _ATTEMPTS - 1:
                    raise EngineError("the replica that worked on this completion has died") from error
            except Exception as error:  # a replica's own come as they are, with the words of what was asked
                raise EngineError(f"no replica made this completion: {type(error).__name__}") from error
            finally:
                if not ended:  # the client has gone, or the replica
                    # One that never came to a replica raises here once more what it failed with.
                    with suppress(RayError, BackPressureError, DeploymentUnavailableError):
                        call.cancel()
            await asyncio.sleep(_PAUSE_S * 2**attempt)

    async def predict(self, body: bytes) -> list[Any]:
        """Predictions for the rows of a request's body, of a network of the user's own.

        Raises:
            ApiError: something in the body is wrong.
            EngineError: the network failed, or no replica answered.
        """
        found: list[Any] = await _asked(self._predict, body)
        return found

    async def encode(self, prompts_B: Ids[Ids[int]]) -> Encoded:
        """See `EncoderEngine`."""
        found: Encoded = await _asked(self._encode, prompts_B)
        return found

    async def check(self, *, timeout_s: float) -> None:
        """See `InferenceEngine`."""
        try:
            failure = await asyncio.wait_for(self._check.remote(timeout_s), timeout_s)
        except Exception as error:
            raise EngineError(f"no replica made a token in {timeout_s} s") from error
        if failure is not None:
            raise EngineError(failure)

    async def loads(self) -> list[Load]:
        """How busy every replica is; empty while there is none."""
        try:
            found: list[Load] = await self._handle.broadcast("load").results_async(timeout_s=_LOADS_S)
        except (RayError, DeploymentUnavailableError, GetTimeoutError, TimeoutError):
            return []
        return found


def handle_of(app: str) -> DeploymentHandle[Any]:
    """Ray Serve's handle of the replicas of a version's application."""
    return DeploymentHandle(DEPLOYMENT, app)


async def _asked(method: Any, argument: Any) -> Any:
    """What a replica returns in one piece; another is asked where the first dies."""
    for attempt in range(_ATTEMPTS):
        try:
            found = await method.remote(argument)
        except BackPressureError as error:
            raise _busy() from error
        except _LOST as error:
            _raise_if_ours(error)
            if attempt == _ATTEMPTS - 1:
                raise EngineError("the replicas that worked on this answer have died") from error
        except Exception as error:
            raise EngineError(f"no replica answered: {type(error).__name__}") from error
        else:
            if isinstance(found, Exception):
                raise found
            return found
        await asyncio.sleep(_PAUSE_S * 2**attempt)
    raise AssertionError("the last attempt returns or raises")


def _raise_if_ours(error: BaseException) -> None:
    """A replica that ends sends the cancellation of its work on; one that was asked for here goes its way."""
    task = asyncio.current_task()
    if isinstance(error, CancelledError) and task is not None and task.cancelling():
        raise error


def _busy() -> EngineBusyError:
    return EngineBusyError("too many requests wait for this model; try again in a moment")
