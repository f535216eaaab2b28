"""What is tried before job 0: every distinct data set, model, loss and augmentation, on one batch of each."""

import gc
import itertools
import json
import logging
import math
import statistics
import time
from collections.abc import Iterable
from typing import Any

import torch

from mcls.config.schema import gather
from mcls.config.sweeps import check_selection
from mcls.errors import RequestError
from mcls.sweep.plan import Sweep
from mcls.system.text import plural
from mcls.training.precision import autocast
from mcls.training.setup import Components, build_components

log = logging.getLogger("mcls")

PARTS = ("dataset", "model", "loss", "augment")
LONGEST = 20.0  # seconds for all of it; what is left then is checked by its own job
STEPS, SECONDS = 10, 0.5  # that a model is timed for, at most
START, OTHER_FILES = 0.5, 100_000  # seconds and bytes of a job besides its steps and checkpoints, roughly


def preflight(plan: Sweep, parallel: int = 1, elsewhere: bool = False, start: float = 0.0) -> str:
    """Push one batch forward and backward for each distinct combination of parts. Returns what the sweep will take.

    Args:
        parallel: jobs that run at a time.
        elsewhere: whether they run on other machines. Then the batch is tried on the CPU, and no time is estimated.
        start: seconds until the first of them begin.

    Raises RequestError with a line for each combination that does not go together; other errors as a job would.
    """
    begun, level = time.monotonic(), log.level
    costs: dict[str, tuple[float, float]] = {}
    first: dict[str, int] = {}  # the first job of each combination
    keys, epochs = [], []
    share = 1.0 if plan.search is None else share_of(plan.search.settings)
    for number, job in enumerate(plan.jobs):
        config = job.config(plan.bases)
        keys.append(json.dumps([*(config[part] for part in PARTS), config["trainer"]["batch_size"]]))
        epochs.append(config["trainer"]["epochs"] * share)
        first.setdefault(keys[-1], number)

    def attempt(number: int) -> None:
        if time.monotonic() - begun > LONGEST:
            return
        job = plan.jobs[number]
        try:
            config = job.config(plan.bases)
            parts = build_components(tried_on_cpu(config) if elsewhere else config)
            check_selection(config, parts.val is not None)
            costs[keys[number]] = cost_of(parts)
        except RequestError as error:
            raise RequestError(f"job {number} ({plan.title(number)}): {error}") from error
        finally:
            gc.collect()

    log.setLevel(logging.ERROR)  # each job says it again
    try:
        gather(attempt, first.values())
    finally:
        log.setLevel(level)
    seconds = statistics.fmean(
        START + costs.get(key, mean_of(costs))[0] * n for key, n in zip(keys, epochs, strict=True)
    )
    size = sum(costs.get(key, mean_of(costs))[1] for key in keys)
    left = len(first) - len(costs)
    untried = f"; {plural(left, 'combination')} checked when their jobs begin" if left else ""
    lasting = "" if elsewhere else f"about {duration(start + seconds * math.ceil(len(keys) / parallel))}, "
    return f"{plural(len(keys), 'job')}, {lasting}{size / 1e6:,.0f} MB{untried}"


def tried_on_cpu(config: dict[str, Any]) -> dict[str, Any]:
    """`config` for one process on the CPU, whatever it is to run on."""
    trainer = {**config["trainer"], "devices": 1, "cuda_graph": "auto", "compile": False}
    return {**config, "device": "cpu", "precision": "auto", "trainer": trainer}


def share_of(settings: dict[str, Any]) -> float:
    """Fraction of all epochs that search=halving trains, about."""
    keep, rungs = settings["keep"], settings["rungs"]
    return float(keep ** (rungs - 1) * (1 + (rungs - 1) * (1 - keep)))


def mean_of(costs: dict[str, tuple[float, float]]) -> tuple[float, float]:
    """The mean of what was measured, for what was not."""
    seconds, sizes = zip(*costs.values(), strict=True)
    return statistics.fmean(seconds), statistics.fmean(sizes)


def duration(seconds: float) -> str:
    """A time as people say it."""
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 1.5 * length:
            return plural(round(seconds / length), unit)
    return plural(max(1, round(seconds)), "second")


def cost_of(parts: Components) -> tuple[float, float]:
    """Seconds of an epoch and bytes of a run folder, from a few steps on the first batches."""
    steps, begun = 0, time.monotonic()
    batches = parts.train.epoch(0, 0, parts.world)
    for inputs, targets in itertools.islice(batches, STEPS):
        if steps == 1:  # the first one warms up
            begun = time.monotonic()
        with autocast(parts.device, parts.precision):
            loss = parts.loss(parts.model(inputs), targets)
        parts.optimizer.zero_grad()
        loss.backward()
        parts.optimizer.step()
        if not math.isfinite(loss.item()):
            break  # which the job reports with its step
        steps += 1
        if steps > 1 and time.monotonic() - begun > SECONDS:
            break
    seconds = (time.monotonic() - begun) / max(1, steps - 1)
    share = len(parts.val) / len(parts.train) if parts.val is not None else 0  # of val, on which there is no backward
    weights = size_of(parts.model.state_dict().values())
    state = size_of(value for each in parts.optimizer.state.values() for value in each.values())
    files = 5 * weights + 2 * state + OTHER_FILES  # best.pt; last.pt and the one before, with the best weights
    return seconds * len(parts.train) * (1 + share), files


def size_of(values: Iterable[Any]) -> int:
    """Bytes of the tensors among `values`."""
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, torch.Tensor))
