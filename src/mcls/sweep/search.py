"""A sweep whose jobs are chosen by the results of the earlier ones: Optuna, which is asked for a job and told its val.

Its journal, search.journal in the sweep's folder, has every trial; trial and job have the same number.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from mcls.config.jobs import Base, Job, Search
from mcls.runs.folder import PRUNED
from mcls.sweep.executors import Executor
from mcls.sweep.plan import Sweep
from mcls.sweep.runner import Driver, frozen
from mcls.sweep.study import distribution_of, open_study, sampler_of


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
    from optuna.trial import TrialState

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
        result = driver.plan.folder(number).finished() or {}
        if trial.state.is_finished():
            return
        if result.get("ended_by") == PRUNED:
            study.tell(number, state=TrialState.PRUNED)
        elif val := result.get("val"):
            study.tell(number, val["accuracy"])

    def configure(number: int) -> tuple[dict[str, Any], dict[str, str]]:
        return frozen(driver.plan, None if fresh else changes)(number)

    failed = driver.run(chosen(), configure, tell)
    return driver.plan, failed
