"""Learning-rate schedules: pure functions of how far the run is, so that resuming one needs no state.

A schedule takes `progress`, the part of all steps already done (0 at the first step, below 1 at the last), and returns
the factor that the optimizer's learning rate is multiplied by. `warmup_fraction` is the part of all steps
in which the factor first rises in a straight line from 0.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch.optim import Optimizer

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


def spare_compiler() -> None:
    """Let optimizers be made without importing torch's compiler, which takes as long as importing torch.

    Four methods of `Optimizer` import it when first called, to ask it to leave them alone; nothing here compiles them.
    They remember the answer in an attribute, which is set here. A torch that does not look for it imports as before.
    """
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        plain = getattr(vars(Optimizer)[name], "__wrapped__", None)
        if plain is not None and not hasattr(plain, "__dynamo_disable"):
            setattr(plain, "__dynamo_disable", plain)  # setattr: Python would mangle the name


def plain_step(optimizer: Optimizer) -> Callable[[], object]:
    """`optimizer.step` of one of torch's optimizers without what torch wraps around it: the import of its compiler,
    a record for its profiler, and hooks, of which there are none here. Any other optimizer's step as it is."""
    kind = type(optimizer)
    if not kind.__module__.startswith("torch.optim.") or optimizer.defaults.get("differentiable"):
        return optimizer.step
    return torch.no_grad()(partial(inspect.unwrap(kind.step), optimizer))


class Rates:
    """Sets the learning rate of each parameter group of `optimizer` to its own base rate times the schedule."""

    def __init__(self, optimizer: Optimizer, schedule: Schedule, total_steps: int) -> None:
        self.optimizer, self.schedule, self.total_steps = optimizer, schedule, total_steps
        self.base = [float(group["lr"]) for group in optimizer.param_groups]

    def set(self, step: int) -> float:
        """Set the rates for the update that follows `step` finished ones; return the first group's."""
        factor = self.schedule(step / self.total_steps)
        for group, base in zip(self.optimizer.param_groups, self.base, strict=True):
            group["lr"] = base * factor
        return self.base[0] * factor
