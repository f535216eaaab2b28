"""The study of a search: Optuna's samplers and pruners, and its journal, which every process of a sweep may write."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.random import SeedSequence

from mcls.config.jobs import Dimension
from mcls.errors import FolderError, MachineError

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

JOURNAL = "search.journal"


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
    file, pruners = path / JOURNAL, optuna.pruners
    kinds = {"none": pruners.NopPruner, "median": pruners.MedianPruner, "hyperband": pruners.HyperbandPruner}
    for key, known in {"kind": ("tpe", "random", "gp"), "pruner": kinds}.items():
        if settings[key] not in known:
            raise FolderError(f"{path / 'sweep.json'}: damaged, search.{key} is {settings[key]!r}.")
    if file.is_symlink():
        raise FolderError(f"{file}: refused, a link.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            storage = optuna.storages.JournalStorage(JournalFileBackend(str(file), JournalFileOpenLock(str(file))))
            study = optuna.create_study(storage=storage, study_name="mcls", direction="maximize", load_if_exists=True)
            study.pruner = kinds[settings["pruner"]]()
    except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise FolderError(f"{file}: damaged ({type(error).__name__}: {error}). Begin a new sweep.") from error
    return study


def sampler_of(settings: dict[str, Any], number: int) -> "BaseSampler":
    """The sampler of trial `number`, with a seed of its own: a search that goes on draws what it would have drawn."""
    from optuna import samplers

    kinds: dict[str, Any] = {"tpe": samplers.TPESampler, "random": samplers.RandomSampler, "gp": samplers.GPSampler}
    seed = int(SeedSequence([settings["seed"], number]).generate_state(1)[0])
    made: BaseSampler = kinds[settings["kind"]](seed=seed)
    return made


def distribution_of(dimension: Dimension) -> "BaseDistribution":
    """What Optuna samples for a key."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    low, high, step = dimension.low, dimension.high, dimension.step
    if low is None or high is None:
        return CategoricalDistribution(list(dimension.choices))
    if isinstance(low, int) and isinstance(high, int) and isinstance(step, int | None):
        return IntDistribution(low, high, log=dimension.log, step=step or 1)
    return FloatDistribution(float(low), float(high), log=dimension.log, step=step)


def pruner_of(path: Path, settings: dict[str, Any], number: int) -> Callable[[int, float], bool]:
    """What the run of a trial asks after each epoch: it reports the val accuracy and says whether the run is given up.

    Args:
        path: folder of the sweep.
        settings: of its search.
        number: of the trial.

    Raises errors of `open_study`.
    """
    from optuna.trial import Trial

    study = open_study(path, settings)
    trial = Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)

    def prune(epoch: int, accuracy: float) -> bool:
        step, known = epoch - 1, study.get_trials(deepcopy=False)[number].intermediate_values
        if any(later > step for later in known):  # an epoch that is done again, after a kill
            return False
        if step not in known and not math.isnan(accuracy):
            trial.report(accuracy, step)
        return trial.should_prune()

    return prune
