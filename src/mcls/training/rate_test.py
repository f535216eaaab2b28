"""The learning-rate range test: train briefly while the rate rises, and see where the loss falls and where it bursts.

L. Smith, Cyclical learning rates for training neural networks, 2017.
"""

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

from mcls.data.loader import worker_errors
from mcls.errors import RequestError, RunError
from mcls.training.optim import train_mode
from mcls.training.run import make_trainer
from mcls.training.setup import Components, build_components, with_expected_input
from mcls.training.state import NullWriter

MEMORY = 0.9  # of the average of the losses
BURST = 3.0  # times the lowest averaged loss, at which the test ends
BELOW = 3.0  # the suggested rate is that of the lowest averaged loss divided by this: the average lags behind


@dataclass(frozen=True)
class RateTest:
    """What a test found.

    Args:
        rates, losses: of each step, the losses averaged over the last ones.
        lowest: the rate at the lowest of them.
        suggested: a rate to train with.
    """

    rates: list[float]
    losses: list[float]
    lowest: float
    suggested: float


def range_test(config: dict[str, Any], low: float, high: float, steps: int) -> RateTest:
    """Train what `config` describes for at most `steps` steps, at rates from `low` to `high`; keep nothing of it.

    Raises RequestError for what has no rate or takes several processes, RunError if no rate lowers the loss.
    """
    if "lr" not in config["optimizer"]:
        raise RequestError(
            f"optimizer.lr: {config['optimizer']['_target_']} has no such key, so there is no rate to test."
        )
    if config["trainer"]["devices"] > 1:
        raise RequestError("trainer.devices: mcls tune lr tests in one process. Set it to 1; the rate is the same.")
    start = {**config["optimizer"], "lr": low}
    parts = build_components(with_expected_input({**config, "optimizer": start}))
    return read_curve(*train_at_rates(replace(parts, cuda_graph=False), low, high, steps))


@worker_errors()
def train_at_rates(parts: Components, low: float, high: float, steps: int) -> tuple[list[float], list[float]]:
    """The rates of the steps until the loss bursts, and the averaged losses."""
    trainer = make_trainer(parts, NullWriter(), lambda state, best_is_new: None, int)
    groups, batches = parts.optimizer.param_groups, len(parts.train)
    factors = [group["lr"] / low for group in groups]
    rates: list[float] = []
    losses: list[float] = []
    average = 0.0
    train_mode(parts.model, 0)
    served = itertools.chain.from_iterable(parts.train.epoch(epoch) for epoch in itertools.count())
    for step, (inputs, targets) in zip(range(steps), served, strict=False):
        done = step / max(1, steps - 1)
        rate = low ** (1 - done) * high**done  # no quotient of the limits, which may be no float
        for group, factor in zip(groups, factors, strict=True):
            group["lr"] = rate * factor
        loss = trainer.update(inputs, targets, parts.train.size(step % batches), parts.train.batch_size)[0].item()
        average = MEMORY * average + (1 - MEMORY) * loss
        rates.append(rate)
        losses.append(average / (1 - MEMORY ** (step + 1)))
        if not losses[-1] < BURST * min(losses):
            break
    return rates, losses


def read_curve(rates: list[float], losses: list[float]) -> RateTest:
    """What the curve says. Raises RunError where no rate lowers the loss."""
    finite = [index for index, loss in enumerate(losses) if math.isfinite(loss)]
    best = min(finite, key=losses.__getitem__, default=0)
    if best == 0:
        raise RunError(
            f"tune lr: no rate from {rates[0]:g} to {rates[-1]:g} lowers the training loss, {losses[0]:.4g} at the "
            "first step. Give other limits: --from RATE --to RATE."
        )
    digits = 1 - math.floor(math.log10(rates[best] / BELOW))  # two significant ones
    return RateTest(rates, losses, rates[best], round(rates[best] / BELOW, digits))
