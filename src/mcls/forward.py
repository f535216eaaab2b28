"""The forward pass: its arithmetic, and measuring a split with it."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from mcls.data.loader import Loader, worker_errors
from mcls.distributed import ALONE, Team
from mcls.errors import Stopped
from mcls.machine import set_matrix_products
from mcls.metrics import Tally

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """The context of a forward pass in `precision`; the fp32 ones need none."""
    return torch.autocast(device.type, DTYPES[precision]) if precision in DTYPES else contextlib.nullcontext()


def as_trained(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The context of a forward pass of a run that was trained in `precision`; it may not be the run used before."""
    set_matrix_products(precision)
    return autocast(device, precision)


@worker_errors()
@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: Loader,
    num_classes: int,
    precision: str,
    stop: Callable[[], int] = int,
    team: Team = ALONE,
) -> Tally:
    """Measure `model` on this process's share of what `loader` serves. Raises Stopped when `stop` tells of a signal."""
    model.eval()
    tally = Tally(num_classes, loader.device)
    for inputs, targets in loader.epoch(team=team):
        with autocast(loader.device, precision):
            logits = model(inputs)
        del inputs  # or the next batch takes memory that is not in the cache
        tally.add(logits, targets)
        if signal_number := stop():
            raise Stopped("stopped while measuring", signal_number)
    return tally
