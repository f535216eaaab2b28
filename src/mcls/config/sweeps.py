"""From a command line with several values to the jobs of a sweep, each with its configuration frozen.

A configuration is composed once for each combination of choices; a job is one of these and the values that it sets in
it, so that the plan of 100,000 jobs takes seconds.
"""

import itertools
import logging
import math
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig

from mcls.config.jobs import Base, Dimension, Job, Search, rung_ends
from mcls.config.overrides import FOLDS, as_plain, choices_of, count, suggestion
from mcls.config.schema import Constraint, gather
from mcls.config.validate import check_fold
from mcls.errors import RequestError

log = logging.getLogger("mcls")

SWEEPS_OWN = ("search", "launcher")  # groups that no job has

Axis = list[tuple["Element", ...]]  # what is walked through; several keys that are zipped are walked side by side


@dataclass(frozen=True)
class Element:
    """One value of a swept key: as it is typed, and as plain data."""

    key: str
    line: str
    value: Any

    @property
    def refers(self) -> bool:
        """Whether the value is made of another key's."""
        return "${" in str(self.value)


def axes_of(swept: Sequence[Override], zipped: Sequence[str], limit: int) -> list[Axis]:
    """What the jobs of a sweep walk through, in the order of the command line.

    Args:
        zipped: keys whose lists are walked side by side.
        limit: a sweep of more jobs is refused, before anything is expanded.
    """
    by_key = {override.key_or_group: override for override in swept}
    if unknown := [key for key in zipped if key not in by_key]:
        raise RequestError(f"sweep.zip: {unknown[0]} does not vary in this sweep. Give it several values.")
    counts = {key: count(override) for key, override in by_key.items()}
    if len({counts[key] for key in zipped}) > 1:
        lengths = ", ".join(f"{key} has {counts[key]:,}" for key in zipped)
        raise RequestError(f"sweep.zip: its keys must have equally many values, but {lengths}.")
    jobs = math.prod(size for key, size in counts.items() if key not in zipped[1:])
    if jobs > limit:
        raise RequestError(f"sweep.max_jobs: {limit:,}, and this sweep has {jobs:,} jobs. List fewer, or raise it.")
    listed = {key: elements_of(override) for key, override in by_key.items()}
    return [
        list(zip(*(listed[each] for each in zipped), strict=True)) if key in zipped else [(one,) for one in listed[key]]
        for key in by_key
        if key not in zipped[1:]
    ]


def elements_of(override: Override) -> list[Element]:
    """The values that a swept override expands to. Raises RequestError without any."""
    if override.is_interval_sweep():
        raise RequestError(
            f"{override.input_line}: needs a search, such as search=tpe. List the values, or use range(...)."
        )
    elements = [Element(override.key_or_group, line, value) for line, value in choices_of(override)]
    if not elements:
        raise RequestError(f"{override.input_line}: expands to no value. Give at least one.")
    return elements


def expand(
    parsed: Sequence[Override], axes: Sequence[Axis], groups: Sequence[str], compose: Callable[[list[str]], Base]
) -> tuple[list[Base], list[Job]]:
    """The jobs of a sweep in the order of their numbers, and what they are based on.

    A key that only some choices have is set in the jobs of those choices alone.

    Args:
        parsed: the command line without Hydra's own keys.
        groups: those of the configuration.
        compose: makes a Base of overrides; those of keys that it does not have are left out.
    """
    elements = [element for axis in axes for together in axis for element in together if element.key not in groups]
    bases: dict[tuple[str, ...], tuple[int, Base, dict[str, Any]]] = {}
    jobs: dict[tuple[str, ...], Job] = {}

    def based(key: tuple[str, ...], lines: list[str], own: Sequence[Element]) -> tuple[int, Base, dict[str, Any]]:
        if key not in bases:
            base = compose(lines)
            known = [element for element in own if element.key in base.rules and not element.refers]
            checked = gather(lambda element: base.rules[element.key].check(element.key, element.value), known)
            values = {element.line: value for element, value in zip(known, checked, strict=True)}
            bases[key] = len(bases), base, values
        return bases[key]

    for combination in itertools.product(*axes):
        chosen = {element.key: element for together in combination for element in together}
        lines = [chosen[o.key_or_group].line if o.key_or_group in chosen else o.input_line or "" for o in parsed]
        base_index, base, checked = based(tuple(e.line for e in chosen.values() if e.key in groups), lines, elements)
        if whole := base.refers or any(element.refers for element in chosen.values()):
            base_index, base, _ = based(tuple(lines), lines, ())
        sets = {e.key: checked[e.line] for e in chosen.values() if e.line in checked and not whole}
        lines = [line for line, override in zip(lines, parsed, strict=True) if has_key(override, base, groups)]
        jobs.setdefault(tuple(lines), Job(lines, base_index, sets))
    plans = [base for _, base, _ in bases.values()]
    tell_partial(parsed, plans, groups)
    gather(partial(check_fold_of, plans), jobs.values() if FOLDS & {element.key for element in elements} else ())
    return plans, list(jobs.values())


def check_fold_of(bases: Sequence[Base], job: Job) -> None:
    """`check_fold` of a job that sets one of FOLDS."""
    sets = {key.removeprefix("dataset."): value for key, value in job.values.items() if key in FOLDS}
    check_fold(bases[job.base or 0].config["dataset"] | sets)


def tell_partial(parsed: Sequence[Override], bases: Sequence[Base], groups: Sequence[str]) -> None:
    """Log which keys only some choices have. Raises RequestError for one that none has."""
    for override in parsed:
        having = [base for base in bases if has_key(override, base, groups)]
        key = override.key_or_group
        if not having:
            raise RequestError(f"{key}: no such key. {suggestion(key, [*bases[0].rules, *groups])}")
        if len(having) < len(bases):
            choice = key.split(".")[0]
            names = dict.fromkeys(f"{choice}={base.choices.get(choice)}" for base in having)
            log.info(f"{key}: only in the jobs with {', '.join(names)}")


def has_key(override: Override, base: Base, groups: Sequence[str]) -> bool:
    """Whether a job that is based on `base` has `override` on its command line."""
    return override.key_or_group in groups or override.is_delete() or base.has(override.key_or_group)


def dimensions_of(swept: Sequence[Override], check: Callable[[str, Any], Any]) -> Iterator[Dimension]:
    """What a search samples. Raises RequestError for what can't be sampled.

    Args:
        check: of a key and a value, the value as the key's constraint converts it.
    """
    for override in swept:
        key, value = override.key_or_group, override.value()
        if isinstance(value, IntervalSweep):
            low, high = (check(key, end) for end in (value.start, value.end))
            log = "log" in value.tags
            if low is None or high is None or low > high or (log and low <= 0):
                raise RequestError(f"{override.input_line}: the first end must be the smaller, with log more than 0.")
            yield Dimension(key, low, high, log=log)
        elif isinstance(value, RangeSweep) and not value.shuffle:
            values = [as_plain(item) for _, item in choices_of(override)]
            yield Dimension(key, check(key, values[0]), check(key, values[-1]), step=as_plain(value.step))
        else:
            for element in (values := elements_of(override)):
                check(key, element.value)
            yield Dimension(key, choices=[element.line.partition("=")[2] for element in values])


def search_of(
    settings: dict[str, Any],
    parsed: Sequence[Override],
    rules: Mapping[str, Constraint],
    groups: Sequence[str],
    limit: int,
) -> Search:
    """What a search samples, and what is the same for all of its jobs. Raises RequestError.

    Args:
        settings: of configs/search.
        parsed: the command line without Hydra's own keys.
        rules: the constraints of the keys.
        groups: those of the configuration.
        limit: a search of more jobs is refused.
    """
    if settings["trials"] > limit:
        raise RequestError(f"search.trials: {settings['trials']:,} are more than sweep.max_jobs={limit:,}.")

    def check(key: str, value: Any) -> Any:
        if key not in rules and key not in groups:
            raise RequestError(f"{key}: no such key. {suggestion(key, [*rules, *groups])}")
        return value if key in groups else rules[key].check(key, value)

    fixed = [override for override in parsed if not override.is_sweep_override()]
    own = (*SWEEPS_OWN, "trust")  # which are no job's
    lines = [o.input_line or "" for o in fixed if o.key_or_group.partition(".")[0] not in own]
    return Search(settings, lines, list(dimensions_of([o for o in parsed if o.is_sweep_override()], check)))


def halving_of(settings: dict[str, Any], bases: Sequence[Base], jobs: Sequence[Job]) -> Search:
    """search=halving over listed jobs. Raises RequestError where they have too few epochs for its rungs."""
    for epochs in {job.config(bases)["trainer"]["epochs"] for job in jobs}:
        ends = rung_ends(settings, epochs)
        if ends[0] < 1 or sorted({*ends}) != ends:
            raise RequestError(
                f"search.rungs: {settings['rungs']} rungs with search.keep={settings['keep']:g} would end after "
                f"{', '.join(map(str, ends))} epochs. Lower search.rungs, or raise trainer.epochs."
            )
    return Search(settings, [], [])


def sweep_command(words: Sequence[str], swept: Sequence[Override]) -> str:
    """What to type for a sweep of what was typed without -m: flags and overrides."""
    sampled = any(o.is_interval_sweep() for o in swept) and not any(word.startswith("search=") for word in words)
    renamed = [re.sub("^name=", "sweep.name=", word) for word in words]
    return shlex.join(["mcls", "train", "-m", *["search=tpe"] * sampled, *renamed])


def refuse_constant(sweep: bool, search: dict[str, Any], launcher: dict[str, Any], words: Sequence[str]) -> None:
    """Raise RequestError, with both commands to choose from, where a sweep is asked for, but no key has
    several values.

    Args:
        sweep: whether -m was typed.
        search, launcher: their settings.
        words: flags and overrides that were typed.
    """
    own = [group for group, chosen in (("search", search), ("launcher", launcher["kind"] != "inline")) if chosen]
    if sweep or own:
        varied = "optimizer.lr=0.01,0.03,0.1" if search else "seed=0,1,2"
        others = [word for word in words if word.partition("=")[0] != varied.partition("=")[0]]
        many = sweep_command([*others, varied], ())
        one = shlex.join(["mcls", "train", *(word for word in words if re.split("[.=]", word)[0] not in own)])
        raise RequestError(
            f"{own[0] if own else '-m'}: needs a key with several values. Use {many}, or for one run {one}."
        )


def refuse_plugins(hydra: DictConfig) -> None:
    """Raise RequestError for plugins of Hydra's that choose or run the jobs of a sweep."""
    if not hydra.sweeper["_target_"].endswith(".BasicSweeper"):
        raise RequestError("hydra/sweeper: mcls has its own. Use search=tpe, random, gp or halving.")
    if not hydra.launcher["_target_"].endswith(".BasicLauncher"):
        raise RequestError("hydra/launcher: mcls has its own. Use launcher=parallel, stacked or slurm.")


def take_sweeps_own(config: dict[str, Any], choices: dict[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Take the groups that are the sweep's, not a job's, out of `config` and `choices`: search, empty where none is
    chosen, and launcher."""
    for group in SWEEPS_OWN:
        choices.pop(group, None)
    return dict(config.pop("search", None) or {}), dict(config.pop("launcher", None) or {"kind": "inline"})


def check_selection(config: dict[str, Any], has_val: bool, sampler: str | None = None) -> None:
    """Raise RequestError unless a sweep of `config` can choose its best job, or `sampler` its next ones, without test.

    Args:
        sampler: the sweeper that chooses the next jobs by the results of earlier ones; None where all are listed.
    """
    test = config["sweep"]["test"]
    if not has_val and (sampler or test == "best"):
        wanted = (
            f"{sampler}: searches on val, never on test" if sampler else "sweep.test: the best job is chosen on val"
        )
        other = "list the values to try" if sampler else "sweep.test=all to open test for every job"
        raise RequestError(f"{wanted}, and there is none. Set dataset.val_fraction=0.1, or {other}.")
    if test != "all" and config["trainer"]["evaluate_test_each_epoch"]:
        raise RequestError(
            f"trainer.evaluate_test_each_epoch: opens test in every job, and sweep.test is {test}. "
            "Set it to false, or sweep.test=all."
        )
