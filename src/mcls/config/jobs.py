"""A checked command line and the jobs of a sweep as data: compositions, and what each job sets in one of them.

It knows nothing of Hydra.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mcls.config.schema import Constraint, put


@dataclass(frozen=True)
class Base:
    """A composed configuration that jobs are based on.

    Args:
        config: checked and resolved.
        choices: what was chosen from each group.
        rules: the constraints of its keys.
        refers: whether a value is made from another key's, so that each job has to be composed by itself.
    """

    config: dict[str, Any]
    choices: dict[str, str]
    rules: Mapping[str, Constraint] = field(default_factory=dict, repr=False)
    refers: bool = False

    def has(self, key: str) -> bool:
        """Whether `key`, or keys below it, are in this configuration."""
        return key in self.rules or any(rule.startswith(f"{key}.") for rule in self.rules)


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Args:
        overrides: its command line.
        base: number of the Base that it is based on, None in the plans of older versions.
        values: what it sets there, dotted keys to plain values, checked.
    """

    overrides: list[str]
    base: int | None = None
    values: dict[str, Any] = field(default_factory=dict)

    def config(self, bases: Sequence[Base]) -> dict[str, Any]:
        """Its configuration."""
        config = copy.deepcopy(bases[self.base or 0].config)
        for key, value in self.values.items():
            put(config, key, value)
        return config


@dataclass(frozen=True)
class Dimension:
    """A key that a search samples.

    Args:
        key: of the configuration, or a group.
        low, high: ends of an interval; None where there are `choices`.
        step: of a range of numbers; None where every number of the interval will do.
        log: whether the interval is sampled on a logarithmic scale.
        choices: as they are typed.
    """

    key: str
    low: float | int | None = None
    high: float | int | None = None
    step: float | int | None = None
    log: bool = False
    choices: Sequence[str] = ()


@dataclass(frozen=True)
class Search:
    """How the results of a sweep's jobs choose what is trained next: new jobs, or which of those listed go on.

    Args:
        settings: of configs/search.
        lines: the overrides that are the same for all jobs that are sampled.
        dimensions: what is sampled; nothing where the jobs are listed.
    """

    settings: dict[str, Any]
    lines: Sequence[str]
    dimensions: Sequence[Dimension]


@dataclass(frozen=True)
class Request:
    """A checked command line.

    Args:
        config: the configuration of the run, or of a sweep's first job; plain dictionaries and lists.
        choices: what was chosen from each group.
        sweep: whether many runs were asked for.
        folder: outputs/NAME, hydra.run.dir or hydra.sweep.dir, where the command line gives it.
        fixed: the keys that have one value for all jobs of a sweep.
        bases, jobs: of a sweep.
        search: how the jobs are chosen, where they are not all listed.
        launcher: how the jobs of a sweep are run, of configs/launcher.
        overrides: the command line's, under the names of today.
        env: environment variables to set (hydra.job.env_set).
    """

    config: dict[str, Any]
    choices: dict[str, str]
    sweep: bool
    folder: str | None
    fixed: list[str]
    bases: list[Base]
    jobs: list[Job]
    search: Search | None
    launcher: dict[str, Any]
    overrides: list[str]
    env: dict[str, str]


def rung_ends(settings: Mapping[str, Any], epochs: int) -> list[int]:
    """After which of its `epochs` a job is compared with the others of search=halving, rung by rung."""
    return [round(epochs * settings["keep"] ** left) for left in reversed(range(settings["rungs"]))]
