"""A sweep whose jobs are chosen by the results of the earlier ones: Optuna, which is asked for a job and told its val.

Its journal, search.journal in the sweep's folder, has every trial; trial and job have the same number.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.random import SeedSequence

from mcls.config.jobs import Base, Dimension, Job, Search
from mcls.errors import FolderError, MachineError
from mcls.sweep.executors import Executor
from mcls.sweep.plan import Sweep
from mcls.sweep.runner import Driver, frozen

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

JOURNAL = "search.journal"


def run_search(
    plan: Sweep,
    search: Search,
    compose: Callable[[list[str]], Base],
    changes: Sequence[str],
    runs: Executor,
    fresh: bool = False,
) -> tuple[Sweep, list[str]]:
    """Choose and train jobs until there are as many as were asked for. Returns the plan, and why jobs failed.

    Args:
        search: the plan's, or one with more trials.
        compose: the configuration of a job from its overrides.
        changes, runs, fresh: as in `run_jobs`.

    A job that fails stays an open trial, which the sampler passes over and `mcls resume` may finish.
    Raises Stopped; FolderError when the journal is damaged.
    """
    study = open_study(plan.path, search.settings)
    space = {dimension.key: distribution_of(dimension) for dimension in search.dimensions}
    driver = Driver(plan, changes, runs, fresh)

    def chosen() -> Iterator[int]:
        for number in range(search.settings["trials"]):
            trials = study.get_trials(deepcopy=False)
            if number >= len(trials):
                study.sampler = sampler_of(search.settings, number)
                params = study.ask(space).params
            else:
                params = trials[number].params
            if number == len(driver.plan.jobs):
                lines = [*search.lines, *(f"{key}={value}" for key, value in params.items())]
                jobs, bases = [*driver.plan.jobs, Job(lines, number)], [*driver.plan.bases, compose(lines)]
                driver.plan = replace(driver.plan, jobs=jobs, bases=bases)
                driver.plan.write()
            yield number

    def tell(number: int) -> None:
        trial = study.get_trials(deepcopy=False)[number]
        val = (driver.plan.folder(number).finished() or {}).get("val")
        if val and not trial.state.is_finished():
            study.tell(number, val["accuracy"])

    def configure(number: int) -> tuple[dict[str, Any], dict[str, str]]:
        return frozen(driver.plan, None if fresh else changes)(number)

    failed = driver.run(chosen(), configure, tell)
    return driver.plan, failed


def sampler_of(settings: dict[str, Any], number: int) -> "BaseSampler":
    """The sampler of trial `number`, with a seed of its own: a search that goes on draws what it would have drawn."""
    from optuna import samplers

    kinds: dict[str, Any] = {"tpe": samplers.TPESampler, "random": samplers.RandomSampler, "gp": samplers.GPSampler}
    seed = int(SeedSequence([settings["seed"], number]).generate_state(1)[0])
    made: BaseSampler = kinds[settings["kind"]](seed=seed)
    return made


def open_study(path: Path, settings: dict[str, Any]) -> "Study":
    """The study in the folder of a sweep, a new one if it has none.

    Raises MachineError without Optuna, FolderError when the journal is damaged.
    """
    try:
        import optuna
        from optuna.exceptions import ExperimentalWarning
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
    except ImportError as error:
        raise MachineError("search: Optuna is not installed. Install it: pip install 'mcls[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file = path / JOURNAL
    if settings["kind"] not in ("tpe", "random", "gp"):
        raise FolderError(f"{path / 'sweep.json'}: damaged, search.kind is {settings['kind']!r}.")
    if file.is_symlink():
        raise FolderError(f"{file}: refused, a link.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            storage = optuna.storages.JournalStorage(JournalFileBackend(str(file), JournalFileOpenLock(str(file))))
            study = optuna.create_study(storage=storage, study_name="mcls", direction="maximize", load_if_exists=True)
    except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise FolderError(f"{file}: damaged ({type(error).__name__}: {error}). Begin a new sweep.") from error
    return study


def distribution_of(dimension: Dimension) -> "BaseDistribution":
    """What Optuna samples for a key."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    low, high, step = dimension.low, dimension.high, dimension.step
    if low is None or high is None:
        return CategoricalDistribution(list(dimension.choices))
    if isinstance(low, int) and isinstance(high, int) and isinstance(step, int | None):
        return IntDistribution(low, high, log=dimension.log, step=step or 1)
    return FloatDistribution(float(low), float(high), log=dimension.log, step=step)
