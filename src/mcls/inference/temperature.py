"""The temperature that calibrates the probabilities of a model."""

import math

import torch
from torch import Tensor

from mcls.metrics import KEPT

SCORE_CHUNK = 1024  # samples counted at a time


def fit_temperature(logits: Tensor, targets: Tensor) -> float | None:
    """The T for which softmax(logits / T) has the smallest log-loss (Guo et al., 2017), None unless it is in 0.01..100.

    Without mistakes there is none: the smaller T, the smaller the loss. The log-loss is convex in 1/T: Newton's steps,
    on a logarithmic scale, find where its slope is 0; where one leads out of what is left, that is halved.
    """
    if bool((logits.argmax(1) == targets).all()):
        return None
    truth = logits.gather(1, targets[:, None]).double().mean()
    low, middle, high, steps, rows = (
        math.log(0.01),
        0.0,
        math.log(100),
        0,
        min(SCORE_CHUNK, max(1, KEPT // logits.shape[1])),
    )
    while high - low > 1e-7:
        sums = torch.zeros(2, dtype=torch.float64)
        for scores in map(torch.Tensor.double, logits.split(rows)):
            weighted = (scores * math.exp(middle)).softmax(dim=1).mul_(scores)
            means = weighted.sum(dim=1)
            sums += torch.stack([means.sum(), (weighted.mul_(scores).sum(dim=1) - means.square()).sum()])
        slope, spread = (sums / len(targets)).tolist()
        slope -= truth.item()
        low, high = (low, middle) if slope > 0 else (middle, high)
        step, steps = slope / max(spread * math.exp(middle), 1e-300), steps + 1
        middle = middle - step if low < middle - step < high and steps < 20 else (low + high) / 2
        if abs(step) < 1e-9 and steps < 20:
            break
    temperature = math.exp(-middle)
    return temperature if 0.01001 < temperature < 99.9 else None
