"""The guard: what is wrong, what follows, and which batches are left out."""

from __future__ import annotations

import json
import math
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.job_train import Guard as Settings
from orchestrator.track import metrics
from orchestrator.track.samples import Window, batch_of, read_windows
from orchestrator.train.guarding.guard import (
    Anomaly,
    Guard,
    Past,
    RollbackError,
    Verdict,
    left_out,
    read_past,
    roll_back,
)

NAN, INF = math.nan, math.inf


def healthy(steps: int, seed: int) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of a training that begins: it falls fast, with noise as of small batches."""
    rng, at = np.random.default_rng(seed), np.arange(steps)
    losses = 2.0 + 7.0 * np.exp(-at / 40.0) + 0.1 * rng.standard_normal(steps)
    norms = (0.5 + 3.0 * np.exp(-at / 25.0)) * np.exp(0.25 * rng.standard_normal(steps))
    return losses.tolist(), norms.tolist()


def after_healthy(settings: Settings, *, steps: int = 200, scaled: bool = False) -> Guard:
    guard = Guard(settings, Past(), scaled=scaled)
    for step, (loss, norm) in enumerate(zip(*healthy(steps, 1), strict=True), 1):
        assert guard.judge(step, loss, norm) == Verdict()
    return guard


@pytest.mark.parametrize("seed", range(8))
def test_a_healthy_training_is_left_alone_from_its_first_step(seed: int) -> None:
    guard = Guard(Settings(), Past())
    for step, (loss, norm) in enumerate(zip(*healthy(600, seed), strict=True), 1):
        assert guard.judge(step, loss, norm).action == "none"


@pytest.mark.parametrize(
    ("loss", "norm", "of"),
    [(15.0, 0.6, metrics.LOSS), (2.0, 20.0, metrics.GRADIENT_NORM), (15.0, 1e9, metrics.GRADIENT_NORM)],
)
def test_a_spike_is_told_with_what_is_usual(loss: float, norm: float, of: str) -> None:
    found = after_healthy(Settings()).judge(201, loss, norm)
    assert (found.kind, found.action, found.of) == ("spike", "warn", of)
    assert found.z is not None
    assert found.z > 12.0
    assert "of step 201 is" in found.why
    assert "deviations above" in found.why


def test_what_falls_is_no_spike() -> None:
    assert after_healthy(Settings()).judge(201, 0.1, 1e-4).action == "none"


def test_a_curve_that_hardly_moves_is_not_warned_of() -> None:
    guard = Guard(Settings(), Past())
    for step in range(1, 200):
        assert guard.judge(step, 3.0 + 1e-6 * (step % 3), 1.0).action == "none"
    assert guard.judge(200, 3.3, 1.2).action == "none"
    assert guard.judge(201, 5.0, 1.0).action == "warn"


def test_the_first_steps_are_not_judged_for_spikes() -> None:
    guard = Guard(Settings(window_steps=20), Past())
    assert [guard.judge(step, 10.0 ** (step % 4), 1.0).kind for step in range(1, 11)] == ["none"] * 10


@pytest.mark.parametrize("action", ["stop", "skip", "rollback"])
@pytest.mark.parametrize(("loss", "norm"), [(NAN, 1.0), (INF, NAN), (1.0, NAN), (1.0, INF)])
def test_what_is_no_number_is_found_from_the_first_step(action: str, loss: float, norm: float) -> None:
    guard = Guard(Settings(non_finite=action), Past())  # type: ignore[arg-type]
    found = guard.judge(1, loss, norm)
    assert (found.kind, found.action, found.z) == ("non-finite", action, None)
    assert found.of == (metrics.LOSS if not math.isfinite(loss) else metrics.GRADIENT_NORM)


def test_a_scaled_gradient_that_overflows_is_the_scalers_business() -> None:
    guard = after_healthy(Settings(), scaled=True)
    assert guard.judge(201, 2.0, INF).action == "none"
    assert guard.judge(202, NAN, INF).action == "stop"


def test_no_more_skips_and_rollbacks_than_allowed() -> None:
    guard = Guard(Settings(non_finite="skip", most=3), Past(interventions=1))
    found = [guard.judge(step, NAN, 1.0) for step in range(5, 9)]
    assert [one.action for one in found] == ["skip", "skip", "stop", "stop"]
    assert "train.guard.most allows 3" in found[2].why


def test_warnings_are_not_counted() -> None:
    guard = after_healthy(Settings(most=0))
    assert [guard.judge(step, 50.0, 1.0).action for step in range(201, 206)] == ["warn"] * 5


values = st.one_of(st.floats(0.1, 10.0), st.sampled_from([NAN, INF, 1e6]))


@given(st.lists(st.tuples(values, values), min_size=1, max_size=80), st.integers(0, 80))
def test_a_guard_that_begins_anew_says_the_same(curve: list[tuple[float, float]], cut: int) -> None:
    """From the lines of the steps before: what ranks and attempts agree on."""
    settings = Settings(non_finite="skip", spike="skip", window_steps=8, most=5)
    whole, lines = Guard(settings, Past()), []
    said: list[Verdict] = []
    for step, (loss, norm) in enumerate(curve, 1):
        said.append(whole.judge(step, loss, norm))
        line = {
            metrics.STEP: step,
            metrics.LOSS: loss if math.isfinite(loss) else None,
            metrics.GRADIENT_NORM: norm if math.isfinite(norm) else None,
        }
        lines.append(line | ({metrics.SKIPPED_UPDATES: 1} if said[-1].action == "skip" else {}))
        if said[-1].action == "stop":  # the attempt ends, and its line is not written
            break
    cut = min(cut, len(said) - 1)
    with tempfile.TemporaryDirectory() as folder:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (Path(folder) / "metrics.jsonl").write_text(text, encoding="utf-8")
        later = Guard(settings, read_past(Path(folder), cut, settings))
    again = [later.judge(step, *curve[step - 1]) for step in range(cut + 1, len(said) + 1)]
    assert repr(again) == repr(said[cut:])


windows = st.lists(st.builds(Window, st.integers(0, 30), st.integers(1, 20)), max_size=4)


@given(windows, st.integers(0, 40), st.integers(1, 40), st.integers(1, 30))
def test_a_rollback_leaves_out_the_wrong_batch_and_nothing_before(
    before: list[Window], after: int, distance: int, at_least: int
) -> None:
    step = after + distance
    window = left_out(step, after, before, at_least=at_least)
    assert window.after_step == after
    assert window.batches >= at_least
    wrong, now = batch_of(step, before), [*before, window]
    assert all(batch_of(t, now) != wrong for t in range(1, step + 200) if t > after)
    assert [batch_of(t, now) for t in range(1, after + 1)] == [batch_of(t, before) for t in range(1, after + 1)]
    assert batch_of(after + 1, now) == batch_of(after + 1, before) + window.batches


def test_rollbacks_add_up_in_the_runs_folder(tmp_path: Path) -> None:
    settings = Settings(skip_batches=5)
    roll_back(tmp_path, RollbackError("x", step=9), to_step=8, settings=settings)
    roll_back(tmp_path, RollbackError("x", step=20), to_step=8, settings=settings)
    assert json.loads((tmp_path / "skipped.json").read_text()) == [
        {"after_step": 8, "batches": 5},
        {"after_step": 8, "batches": 12},
    ]
    past = read_past(tmp_path, 8, settings)
    assert (past.interventions, past.windows) == (2, tuple(read_windows(tmp_path)))


def anomaly(action: str = "rollback", value: float = NAN, samples: int = 100) -> Anomaly:
    found = Verdict("non-finite", action, metrics.LOSS, value, None, f"the loss of step 9 is {value}")  # type: ignore[arg-type]
    return Anomaly(9, found, tuple(range(64)), samples - 64)


def test_an_anomaly_is_told_in_plain_json() -> None:
    facts = json.loads(json.dumps(anomaly().facts(), allow_nan=False))
    assert facts.items() >= {"step": 9, "kind": "non-finite", "value": "nan", "z": None, "more": 36}.items()
    assert facts["samples"] == list(range(64))


def test_the_errors_say_what_follows_and_travel() -> None:
    error = pickle.loads(pickle.dumps(anomaly().error()))
    assert isinstance(error, RollbackError)
    assert error.step == 9
    assert error.message.startswith("the loss of step 9 is nan; its samples are 0, 1, 2,")
    assert error.message.endswith("15 and 84 more")
    assert not isinstance(anomaly("stop").error(), RollbackError)
