"""The jobs of a sweep and its end: the test set and the table."""

import logging
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from mcls.config.saved import check_saved, saved_config
from mcls.errors import MclsError, Stopped
from mcls.report.summary import percent
from mcls.runs.folder import PRUNED
from mcls.sweep.executors import Executor
from mcls.sweep.halving import rungs_of
from mcls.sweep.plan import Sweep
from mcls.sweep.preflight import duration
from mcls.sweep.summary import summarise
from mcls.sweep.table import Setting, write_table
from mcls.sweep.task import Outcome, Task, record_failure
from mcls.system.files import make_folder
from mcls.system.text import plural
from mcls.training.restore import read_metadata

log = logging.getLogger("mcls")

Configure = Callable[[int], tuple[dict[str, Any], dict[str, str]]]


def run_jobs(
    plan: Sweep, configure: Configure, changes: Sequence[str], runs: Executor, fresh: bool = False
) -> list[str]:
    """Bring every job of a sweep that is not finished to its end. Returns why jobs failed.

    Args:
        configure: from the number of a job to its checked configuration and choices.
        changes: `key=value` for jobs that were begun: where their data are, which packages to trust.
        runs: where they run.
        fresh: whether the sweep's own command was typed. Then a folder with another configuration is refused.

    Raises Stopped. A job that fails is recorded in its folder and stops no other.
    """
    driver = Driver(plan, changes, runs, fresh)
    if plan.search is None:
        return driver.run(range(len(plan.jobs)), configure)
    for numbers, until in rungs_of(plan, plan.search):
        driver.begin_rung(len(numbers), until)
        driver.run(numbers, configure)
    return driver.failed


class Driver:
    """Hands the jobs of a sweep to an executor, and keeps the table up to date.

    Args:
        plan: of the sweep; may grow meanwhile.
        changes, runs, fresh: as in `run_jobs`.
    """

    def __init__(self, plan: Sweep, changes: Sequence[str], runs: Executor, fresh: bool) -> None:
        self.plan, self.changes, self.runs, self.fresh = plan, changes, runs, fresh
        self.failed: list[str] = []
        self.total = plan.search.settings["trials"] if plan.search and plan.samples else len(plan.jobs)
        self.begun, self.done, self.written = time.monotonic(), 0, 0.0
        self.until: Sequence[int] = ()

    def begin_rung(self, jobs: int, until: Sequence[int]) -> None:
        """From now on train each job up to its epoch in `until` alone; so many `jobs` will be asked for."""
        self.total, self.until = jobs, until
        self.begun, self.done, self.written = time.monotonic(), 0, 0.0

    def run(self, numbers: Iterable[int], configure: Configure, told: Callable[[int], object] = int) -> list[str]:
        """Bring the jobs with these numbers to their end. Returns why jobs failed.

        Args:
            numbers: asked for one at a time, when there is room for one more job.
            told: called with the number of each job that ended.
        """
        for number in numbers:
            try:
                task = self.task(number, configure)
            except Stopped:
                raise
            except Exception as error:
                log.info(f"\njob {number}: {self.plan.title(number)}")
                make_folder(self.plan.folder(number).path)
                record_failure(self.plan.folder(number), error, self.plan.jobs[number].overrides)
                self.ended(number, str(error), told)
                continue
            self.runs.submit(task)
            while self.runs.running() >= (self.runs.capacity if self.plan.samples else self.runs.accepts):
                self.collect(told)
        while self.runs.running():
            self.collect(told)
        return self.failed

    def task(self, number: int, configure: Configure) -> Task:
        """A job for an executor."""
        job, folder = self.plan.jobs[number], self.plan.folder(number)
        goes_on = folder.begun and not self.fresh
        config, choices = (None, {}) if goes_on else configure(number)
        command, again, search = self.plan.command, self.plan.resume_command, self.plan.search
        prunes = search is not None and search.settings.get("pruner", "none") != "none"
        pruner = {"path": str(self.plan.path), "settings": search.settings} if search and prunes else {}
        until = self.until[number] if self.until else None
        task = Task(number, folder.path, job.overrides, command, again, config, choices, self.changes, pruner, until)
        return replace(task, title=self.plan.title(number))

    def collect(self, told: Callable[[int], object]) -> None:
        """Wait for a job to end. Raises Stopped."""
        ended = wait_for(self.plan, self.runs)
        for number, reason in ended:
            self.ended(number, reason, told, last=number == ended[-1][0])

    def ended(self, number: int, reason: str, told: Callable[[int], object], last: bool = True) -> None:
        """Take note of a job that ended, and write the table, if that does not take long beside the jobs.

        Args:
            last: whether it is the last of those that ended at the same time, as those of a stack do.
        """
        self.done += 1
        if reason:
            self.failed.append(reason)
        told(number)
        started, settings = time.monotonic(), []
        if last and started - self.begun >= 20 * self.written:
            settings = write_table(self.plan)
            self.written += time.monotonic() - started
        self.tell_progress(number, reason, settings, last)

    def tell_progress(self, number: int, reason: str, settings: Sequence[Setting], last: bool) -> None:
        """One line: how the job ended if it ran elsewhere, how many are done, how long the others will take.

        Args:
            settings: of the table, if it was just written: it says which is best so far.
            last: whether no other job ended at the same time that is not told yet; otherwise how many are done waits.
        """
        parts, result = [], self.plan.folder(number).finished() or {}
        ends = result.get("ended_by") == PRUNED and not self.until  # which the heading of a rung says of all its jobs
        pruned = [f"pruned after epoch {result['epochs']}"] if ends else []
        if self.runs.capacity > 1:
            said = f"val {percent(result['val'])}" if result.get("val") else result.get("status", "")
            said = f"failed: {reason}" if reason else ", ".join([*pruned, said])
            parts.append(f"job {number} ({self.plan.title(number)}): {said}")
        elif pruned:
            parts = pruned
        if last:
            rung = " of this rung" if self.until else ""
            parts.append(f"{self.done} of {plural(self.total, 'job')}{rung} done")
        if last and self.done < self.total:
            left = (time.monotonic() - self.begun) / self.done * (self.total - self.done)
            parts[-1] += f", about {duration(left)} left"
        if settings and (accuracies := settings[0].measured("val")):
            values = " ".join(f"{key}={value}" for key, value in settings[0].values.items())
            parts.append(f"best so far: val {statistics.fmean(accuracies):.2%}" + (values and f" with {values}"))
        log.info("; ".join(parts))


def wait_for(plan: Sweep, runs: Executor) -> list[Outcome]:
    """Wait for at least one job. Raises Stopped, with what to type to go on."""
    try:
        return runs.wait()
    except Stopped as error:
        raise Stopped(f"{error}; go on with: {plan.resume_command}", error.signal_number) from error


def frozen(plan: Sweep, changes: Sequence[str] | None = None) -> Configure:
    """What gives a job the configuration that was frozen in `plan`.

    Args:
        changes: None where the command line that made the plan was typed just now. Otherwise the plan may be a
            stranger's: it is checked like a run folder, and trusts no package but those named here.
    """

    def configure(number: int) -> tuple[dict[str, Any], dict[str, str]]:
        job = plan.jobs[number]
        config, choices = job.config(plan.bases), plan.bases[job.base or 0].choices
        return config if changes is None else check_saved(config, choices, changes, plan.path / "sweep.json"), choices

    return configure


def conclude(plan: Sweep, changes: Sequence[str], runs: Executor) -> None:
    """Open the test set for the jobs of a sweep that `sweep.test` names, then show the table.

    What a job lacks is done once more from its last checkpoint: its folder first says that the test set is open.
    """
    settings = write_table(plan)
    jobs = [[job for job in setting.repeats if job.status == "finished"] for setting in settings]
    closed = [[job for job in each if not job.result.get("test")] for each in jobs]
    every = [job for each in closed for job in each]
    which = saved_config(every[0].folder, changes)["sweep"]["test"] if every else "none"
    if which == "best" and not settings[0].measured("val"):
        which = "none"
    opened = {"none": [], "best": closed[0] if closed else [], "all": every}[which]

    def collect() -> None:
        for number, reason in wait_for(plan, runs):
            result = plan.folder(number).finished() or {}
            if not reason and result.get("test"):
                log.info(f"test  {percent(result['test'])}, job {number} ({plan.title(number)})")

    if opened:
        log.info(f"\nthe test set is opened for {'the best setting on val' if which == 'best' else 'all jobs'}")
    for job in opened:
        about = read_metadata(job.folder)
        try:
            with job.folder.lock():
                job.folder.write_json(job.folder.about, {**about, "test_closed": False})
        except MclsError as error:
            record_failure(job.folder, error, about["overrides"])
            continue
        again = plan.resume_command
        runs.submit(
            Task(
                job.number, job.folder.path, about["overrides"], plan.command, again, None, {}, changes, once_more=True
            )
        )
        while runs.running() >= runs.accepts:
            collect()
    while runs.running():
        collect()
    summarise(plan)
