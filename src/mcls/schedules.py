"""Learning-rate schedules: pure functions of how far the run is, so that resuming one needs no state.

A schedule takes `progress`, the fraction of all steps already done (0 at the first step, below 1 at the last), and
returns the factor that the optimizer's learning rate is multiplied by. `warmup_fraction` is the fraction of all steps
in which the factor first rises in a straight line from 0.
"""

import math
from collections.abc import Callable, Sequence

__all__ = ["constant", "cosine", "one_cycle", "step_decay"]

Schedule = Callable[[float], float]


def half_cosine(part: float, start: float, end: float) -> float:
    """From `start` at part 0 to `end` at part 1 along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * part)) / 2


def constant(progress: float, *, warmup_fraction: float) -> float:
    """A straight line from 0 to 1 over the first `warmup_fraction` of the run, then 1."""
    return progress / warmup_fraction if progress < warmup_fraction else 1.0


def step_decay(progress: float, *, milestones: Sequence[float], factor: float, warmup_fraction: float) -> float:
    """`factor` to the power of how many `milestones` (parts of the run) have been reached."""
    reached = sum(progress >= milestone for milestone in milestones)
    return constant(progress, warmup_fraction=warmup_fraction) * float(factor**reached)


def cosine(progress: float, *, end_factor: float, warmup_fraction: float) -> float:
    """Half a cosine from 1 at the end of the warm-up to `end_factor` at the end of the run."""
    if progress < warmup_fraction:
        return progress / warmup_fraction
    return half_cosine((progress - warmup_fraction) / (1 - warmup_fraction), 1.0, end_factor)


def one_cycle(progress: float, *, warmup_fraction: float, start_factor: float, end_factor: float) -> float:
    """Half a cosine from `start_factor` to 1 over `warmup_fraction`, then one down to `end_factor` (Smith, 2018)."""
    if progress < warmup_fraction:
        return half_cosine(progress / warmup_fraction, start_factor, 1.0)
    return half_cosine((progress - warmup_fraction) / (1 - warmup_fraction), 1.0, end_factor)
