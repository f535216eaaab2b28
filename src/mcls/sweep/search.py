"""A sweep whose jobs are chosen by the results of the earlier ones: Optuna, which is asked for a job and told its val.

Its journal, search.journal in the sweep's folder, has every trial; trial and job have the same number.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcls.config.jobs import Base, Dimension, Job, Search
from mcls.errors import FolderError, MachineError
from mcls.sweep.plan import Sweep
from mcls.sweep.runner import frozen, run_job
from mcls.system.signals import StopRequest

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

JOURNAL = "search.journal"


def run_search(
    plan: Sweep,
    search: Search,
    compose: Callable[[list[str]], Base],
    changes: Sequence[str],
    stop: StopRequest,
    fresh: bool = False,
) -> tuple[Sweep, list[str]]:
    """Choose and train jobs until there are as many as were asked for. Returns the plan, and why jobs failed.

    Args:
        search: the plan's, or one with more trials.
        compose: the configuration of a job from its overrides.
        changes, fresh: as in `run_jobs`.

    Raises Stopped; FolderError when the journal is damaged. What a killed job had begun is brought to its end first.
    """
    study = open_study(plan.path, search.settings)
    from optuna.trial import TrialState

    space = {dimension.key: distribution_of(dimension) for dimension in search.dimensions}
    failed = []
    for number in range(search.settings["trials"]):
        trials = study.get_trials(deepcopy=False)
        params = trials[number].params if number < len(trials) else study.ask(space).params
        if number == len(plan.jobs):
            lines = [*search.lines, *(f"{key}={value}" for key, value in params.items())]
            jobs, bases = [*plan.jobs, Job(lines, number)], [*plan.bases, compose(lines)]
            plan = replace(plan, jobs=jobs, bases=bases)
            plan.write()
        failed.append(run_job(plan, number, frozen(plan, None if fresh else changes), changes, stop, fresh))
        if not study.get_trials(deepcopy=False)[number].state.is_finished():
            val = (plan.folder(number).finished() or {}).get("val")
            study.tell(number, val["accuracy"] if val else None, None if val else TrialState.FAIL)
    return plan, [reason for reason in failed if reason]


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
    samplers = {
        "tpe": optuna.samplers.TPESampler,
        "random": optuna.samplers.RandomSampler,
        "gp": optuna.samplers.GPSampler,
    }
    if settings["kind"] not in samplers:
        raise FolderError(f"{path / 'sweep.json'}: damaged, search.kind is {settings['kind']!r}.")
    if file.is_symlink():
        raise FolderError(f"{file}: refused, a link.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            storage = optuna.storages.JournalStorage(JournalFileBackend(str(file), JournalFileOpenLock(str(file))))
            study = optuna.create_study(storage=storage, study_name="mcls", direction="maximize", load_if_exists=True)
            seed = settings["seed"] + len(study.trials)  # a search that goes on does not draw the same again
            study.sampler = samplers[settings["kind"]](seed=seed)
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
