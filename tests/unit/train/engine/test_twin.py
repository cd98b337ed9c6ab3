"""The twin: outputs of the weights as they are, from another thread, of which the training notices nothing."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
from engine_fixtures import CONFIG, CausalLM, TorchEngine, ids_of, settings, step_of

from model.gpt import GPT
from orchestrator.objectives.protocol import Tensors
from orchestrator.train.engine.deepspeed_engine import DeepSpeedEngine
from orchestrator.train.engine.protocol import StepStats, TrainEngine
from orchestrator.train.group import TorchGroup

PROBE = {"input_ids": ids_of(99)[:2, :-1].contiguous()}


def engine_of(group: TorchGroup, stage: int | None, precision: str, **more: Any) -> TrainEngine:
    model = GPT(replace(CONFIG, dropout=0.2)).initialise(1)
    train = settings(precision=precision, zero={"stage": stage or 0}, **more)
    if stage is None:
        return TorchEngine(model, CausalLM(), train, group=group)
    return DeepSpeedEngine(model, CausalLM(), train, group=group, stage=stage, micro_batch=4, accumulation=2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [None, 0, 1, 2])
def test_it_computes_what_the_engine_would_while_that_trains(
    alone: TorchGroup, stage: int | None, precision: str
) -> None:
    def train(*, besides: bool) -> tuple[list[StepStats], list[Tensors], list[Tensors]]:
        torch.manual_seed(5)
        engine = engine_of(alone, stage, precision)
        beside = engine.beside()
        assert beside is not None
        found: list[Tensors] = []

        def again_and_again() -> None:
            found.extend(beside(PROBE) for _ in range(5))

        stats, expected = [], []
        for step in range(1, 4):
            expected.append(engine.outputs(PROBE))
            thread = threading.Thread(target=again_and_again)

            def admit(_: StepStats, thread: threading.Thread = thread) -> bool:
                if besides:
                    thread.join()
                return True

            if besides:
                thread.start()
            stats.append(step_of(engine, step, accumulation=2, admit=admit))
        return stats, expected, found

    plain, _, _ = train(besides=False)
    watched, expected, found = train(besides=True)
    assert [stat.losses for stat in watched] == [stat.losses for stat in plain]
    assert len(found) == 15
    for i, outputs in enumerate(found):
        assert torch.equal(outputs["logits"], expected[i // 5]["logits"])


@pytest.mark.parametrize(("stage", "more"), [(3, {}), (None, {"ema": 0.9}), (None, {"compile": True})])
def test_there_is_none_where_only_the_training_can_compute(
    alone: TorchGroup, stage: int | None, more: dict[str, Any]
) -> None:
    assert engine_of(alone, stage, "fp32", **more).beside() is None
