"""`search=halving`: all settings of a sweep for a few epochs, the best of them for more, by resuming their runs."""

import logging
import math
import statistics
from collections.abc import Iterator, Sequence

from mcls.config.jobs import Search, rung_ends
from mcls.sweep.plan import Sweep
from mcls.sweep.summary import curve_of
from mcls.sweep.table import Repeat, Setting, read_settings
from mcls.system.text import plural

log = logging.getLogger("mcls")


def rungs_of(plan: Sweep, search: Search) -> Iterator[tuple[list[int], list[int]]]:
    """For each rung the jobs that have not reached its end, and the epochs at which each job of the sweep does.

    A rung is to be trained before the next one is asked for. Which settings go on is read from metrics.jsonl up to the
    end of the rung alone, so that a sweep that goes on chooses as it did.
    """
    rungs, keep = search.settings["rungs"], search.settings["keep"]
    ends = [rung_ends(search.settings, job.config(plan.bases)["trainer"]["epochs"]) for job in plan.jobs]
    going = read_settings(plan)
    count = len(going)
    for rung in range(rungs):
        if rung:
            values = [setting.values for setting in going]
            trained = [setting for setting in read_settings(plan) if setting.values in values]
            size = max(1, math.ceil(count * keep**rung - 1e-9))
            if not (going := best_of(trained, [each[rung - 1] for each in ends], size)):
                return
        until = [each[rung] for each in ends]
        jobs = sorted((job for setting in going for job in setting.repeats), key=lambda job: job.number)
        last = " or ".join(map(str, sorted({until[job.number] for job in jobs})))
        log.info(f"\nrung {rung + 1} of {rungs}: {len(going)} of {plural(count, 'setting')}, until epoch {last}")
        yield [job.number for job in jobs if not reached(job, until[job.number])], until


def best_of(settings: Sequence[Setting], until: Sequence[int], size: int) -> list[Setting]:
    """The `size` settings that are the best on val after the epochs `until` of their jobs, and those that went on then.

    Settings with a job that failed before that are not among them.
    """
    best: list[tuple[float, int, Setting]] = []
    for setting in settings:
        curves = [(until[job.number], *(curve_of(job) or ([0], [0.0]))) for job in setting.repeats]
        whole = all(
            epochs[-1] >= end or job.status == "finished"
            for (end, epochs, _), job in zip(curves, setting.repeats, strict=True)
        )
        accuracies = [
            max((accuracy for epoch, accuracy in zip(epochs, values, strict=True) if epoch <= end), default=0.0)
            for end, epochs, values in curves
        ]
        if whole:
            ahead = any(epochs[-1] > end for end, epochs, _ in curves)
            best.append((-math.inf if ahead else -statistics.fmean(accuracies), setting.repeats[0].number, setting))
    best.sort(key=lambda each: each[:2])
    return [setting for index, (value, _, setting) in enumerate(best) if index < size or value == -math.inf]


def reached(job: Repeat, until: int) -> bool:
    """Whether a job has been trained until that epoch, or to an end of its own.

    One that was stopped in a later epoch has gone on to another rung already.
    """
    return job.status == "finished" or (job.result.get("epochs") or 0) >= until + (job.status != "pruned")
