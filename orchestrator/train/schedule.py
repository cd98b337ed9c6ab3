"""Learning rate as a function of the step. Pure."""

from __future__ import annotations

import math

from orchestrator.job_train import Schedule

_DECAY_SHARE = 5
"""wsd: the decay takes one in so many steps, where the job does not say how many."""


def learning_rate(step: int, *, peak: float, steps: int, schedule: Schedule) -> float:
    """The rate of step 1 to `steps`: linear warm-up to `peak`, then as the schedule's name says.

    cosine: half a cosine (Loshchilov and Hutter 2017, equation 5, without restarts). linear: a straight line.
    wsd: the peak, then a straight line over the last steps (Hu et al. 2024). These three end at `final_fraction` of
    the peak, in the last step. inverse-sqrt: peak x sqrt(warm-up / step) (Vaswani et al. 2017, equation 3).
    """
    warmup = schedule.warmup_steps
    if step <= warmup:
        return peak * step / warmup
    if schedule.name == "constant":
        return peak
    if schedule.name == "inverse-sqrt":
        return peak * math.sqrt(max(1, warmup) / step)
    falling = steps - warmup
    if schedule.name == "wsd":
        falling = min(falling, schedule.decay_steps or max(1, steps // _DECAY_SHARE))
    done = min(1.0, max(0.0, (step - (steps - falling)) / max(1, falling)))
    left = 0.5 * (1.0 + math.cos(math.pi * done)) if schedule.name == "cosine" else 1.0 - done
    final = peak * schedule.final_fraction
    return final + (peak - final) * left
