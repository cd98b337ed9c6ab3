"""Learning rate as a function of the step. Pure."""

from __future__ import annotations

import math

from orchestrator.job import Schedule


def learning_rate(step: int, *, peak: float, steps: int, schedule: Schedule) -> float:
    """The rate of step 1 to `steps`: linear warm-up to `peak`, then constant, or half a cosine down to a fraction.

    Cosine as in Loshchilov and Hutter 2017, equation 5, without restarts; the last step has the final rate.
    """
    if step <= schedule.warmup_steps:
        return peak * step / schedule.warmup_steps
    if schedule.name == "constant":
        return peak
    done = (step - schedule.warmup_steps) / max(1, steps - schedule.warmup_steps)
    final = peak * schedule.final_fraction
    return final + (peak - final) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
