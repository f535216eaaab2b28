"""From a command line to checked dictionaries, without importing torch.

Hydra composes the configuration; it is then checked against the constraints in the YAML files. Hydra's errors become
one line each, with the nearest existing name.
"""

import contextlib
import itertools
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, RangeSweep
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mcls.config.files import compose_files, config_loader
from mcls.config.overrides import (
    as_list,
    as_text,
    blamed,
    count,
    elements,
    first,
    nearest_key,
    planned,
    shell,
    shell_quoted,
    suggestion,
    typeset,
)
from mcls.config.schema import Constraint, gather, leaves
from mcls.config.validate import check_config, choices_with, constraints_of
from mcls.errors import RequestError
from mcls.runs.renamed import KEYS, rename_line, today

log = logging.getLogger("mcls")

TYPESET = "typographic minus or quotation marks. Type"
Checked = tuple[dict[str, Any], dict[str, str]]
NONE = "experiment=null"  # which Hydra does not take
COMBINATIONS = 64  # of swept groups, each composed before the sweep begins


@dataclass(frozen=True)
class Request:
    """A checked command line.

    Args:
        config: the configuration of the run, or of a sweep's first job; plain dictionaries and lists.
        choices: what was chosen from each group.
        sweep: whether many runs were asked for.
        folder: hydra.run.dir or hydra.sweep.dir, where the command line gives it.
        fixed: the keys that have one value for all jobs of a sweep.
        jobs: the overrides of each job of a sweep; empty where a plugin of Hydra's finds them.
        plugin: the class of the sweeper, where it or the launcher is a plugin of Hydra's.
        overrides: the command line's, under the names of today.
        env: environment variables to set (hydra.job.env_set).
    """

    config: dict[str, Any]
    choices: dict[str, str]
    sweep: bool
    folder: str | None
    fixed: list[str]
    jobs: list[list[str]]
    plugin: str
    overrides: list[str]
    env: dict[str, str]


class Checker:
    """Checks command lines against the configuration files that Hydra finds.

    Args:
        loader: Hydra's.
        name: of the primary configuration.
    """

    def __init__(self, loader: ConfigLoader, name: str) -> None:
        self.loader, self.name = loader, name
        self.parser = OverridesParser.create(config_loader=loader)
        self.groups = [group for group in loader.list_groups("") if group != "hydra"]

    def check(self, overrides: list[str], multirun: bool) -> Request:
        """Compose what is asked for, every choice of a sweep included. Raises RequestError, a line per error.

        What is wrong with the overrides that the first errors say nothing of is found without those.
        """
        try:
            return self.check_once(overrides, multirun)
        except RequestError as error:
            rest = [line for line in overrides if not blamed(line, str(error))]
            if len(rest) in (0, len(overrides)) or str(error).startswith("experiment"):
                raise
            try:
                self.check(rest, multirun)
            except RequestError as other:
                lines = dict.fromkeys([*str(error).split("\n"), *str(other).split("\n")])
                raise RequestError("\n".join(lines)) from error
            raise

    def check_once(self, overrides: list[str], multirun: bool) -> Request:
        """`check`, up to the first kind of error."""
        overrides = self.renamed(overrides)
        parsed = gather(self.parse, overrides)
        gather(self.check_choice, parsed)
        swept = [override for override in parsed if override.is_sweep_override()]
        mode = {str(override.value()) for override in parsed if override.key_or_group == "hydra.mode"}
        if swept and not multirun and RunMode.MULTIRUN.name not in mode:
            line = swept[0].input_line or ""
            raise RequestError(
                f"{line}: several values make a sweep. Say mcls train -m {line}, "
                f"or if it is a text {shell_quoted(line)}."
            )
        fixed = [override.input_line or "" for override in parsed if override not in swept]
        listed = self.listed(fixed, swept) if swept else {}
        by_group = [values for key, values in listed.items() if key in self.groups and values]
        by_key = [values for key, values in listed.items() if key not in self.groups]
        requests = []
        for chosen in itertools.islice(itertools.product(*by_group), COMBINATIONS):
            config, hydra = self.compose([*fixed, *chosen, *(values[0] for values in by_key if values)])
            for override in swept:
                if not listed[override.key_or_group]:
                    self.refuse_unlisted(override, str(hydra.sweeper.get("_target_")))
            requests.append((hydra, *self.checked(config, hydra, overrides)))
            gather(partial(self.check_line, constraints_of(hydra)), itertools.chain.from_iterable(by_key))
        hydra, values, choices = requests[0]
        if hydra.job.chdir:
            raise RequestError(
                "hydra.job.chdir: true, but relative paths are those of the folder you are in. Say false."
            )
        sweep = multirun or hydra.mode == RunMode.MULTIRUN
        place = "hydra.sweep.dir" if sweep else "hydra.run.dir"
        given = any(override.key_or_group == place for override in parsed)
        try:
            folder = str(hydra.sweep.dir if sweep else hydra.run.dir) if given else None
        except OmegaConfBaseException as error:
            raise RequestError(f"{place}: {' '.join(str(error).split())}") from error
        keys = [override.key_or_group for override in parsed if override not in swept]
        sweeper = str(hydra.sweeper["_target_"])
        plugins = not sweeper.endswith(".BasicSweeper") or not hydra.launcher["_target_"].endswith(".BasicLauncher")
        jobs = planned(parsed, listed) if sweep and not plugins else []
        env = {str(key): str(value) for key, value in hydra.job.env_set.items()}
        return Request(values, choices, sweep, folder, keys, jobs, sweeper if plugins else "", overrides, env)

    def check_line(self, rules: Mapping[str, Constraint], line: str) -> None:
        """Raise RequestError unless the value that override `line` sets fits the constraint of its key."""
        override = self.parse(line)
        if rule := rules.get(override.key_or_group):
            rule.check(override.key_or_group, as_plain(override.value()))

    def job_folder(self, lines: list[str], index: int) -> str:
        """The name that hydra.sweep.subdir gives to the folder of a job."""
        _, hydra = compose_files(self.name, [*lines, f"hydra.job.num={index}"])
        return str(hydra.sweep.subdir)

    def listed(self, fixed: list[str], swept: list[Override]) -> dict[str, list[str]]:
        """The values of swept overrides, by key; nothing is expanded before sweep.max_jobs allows the sweep."""
        begin = {override.key_or_group: first(override) for override in swept}
        config, hydra = self.compose([*fixed, *itertools.chain.from_iterable(begin.values())])
        limit, basic = (
            check_config(config, hydra)[0]["sweep"]["max_jobs"],
            hydra.sweeper._target_.endswith(".BasicSweeper"),
        )
        counts = [count(override) for override in swept]
        jobs = math.prod(counts) if basic else hydra.sweeper.get("n_trials") or 0
        if jobs > limit:
            raise RequestError(f"sweep.max_jobs: {limit:,}, and this sweep has {jobs:,} jobs. List fewer, or raise it.")
        pairs = zip(swept, counts, strict=True)
        return begin | {override.key_or_group: elements(override) for override, count in pairs if count <= limit}

    def values(self, overrides: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
        """The checked configuration of one run, and its choices. Raises RequestError."""
        overrides = self.renamed(overrides)
        return self.checked(*self.compose(overrides), overrides)

    def renamed(self, lines: list[str]) -> list[str]:
        """`lines` with the keys and values that older versions called otherwise under their names of today."""
        keys = [self.parse(line).key_or_group for line in lines]
        rules: dict[str, Constraint] = {}
        if KEYS.keys() & set(keys):
            pairs = zip(lines, keys, strict=True)
            chosen = [self.parse(rename_line(line, key, key)) for line, key in pairs if key in self.groups]
            texts = [text for override in chosen for text in first(override) or [override.input_line or ""]]
            rules = constraints_of(compose_files(self.name, [text for text in texts if text != NONE])[1])
        named = [rename_line(line, key, today(key, rules)) for line, key in zip(lines, keys, strict=True)]
        for line, new in zip(lines, named, strict=True):
            if line != new:
                log.warning(f"{line}: is called {new} now")
        return named

    def parse(self, override: str) -> Override:
        """One override, parsed by Hydra's grammar."""
        plain = typeset(override)
        if override.startswith("="):
            raise RequestError(f"{override}: the key is missing. Write key=value; see mcls train --help.")
        if plain and (plain.endswith("'") or "=" not in plain):
            raise RequestError(f"{override}: {TYPESET} {shell(plain)}")
        try:
            parsed = self.parser.parse_override(override)
            parsed.config_loader = self.loader  # for glob(*)
            return parsed
        except Exception as error:  # Hydra's parser leaks many kinds for input that is no override
            hint = self.hint(override, lambda value: value) or "Write key=value; see mcls train --help."
            raise RequestError(f"{override}: not an override of the form key=value. {hint}") from error

    def hint(self, line: str, accepts: Callable[[Any], Any]) -> str | None:
        """How `key=value` is to be typed so that Hydra takes it for the text, or the list of texts, that it shows.

        Only what Hydra's own parser takes for just that is offered, and only if `accepts` does not refuse the value.
        """
        if plain := typeset(line):
            return f"It has {TYPESET} {shell(plain)}"
        for kind, typed in (("a list of text", as_list(line)), ("a text", as_text(line))):
            with contextlib.suppress(Exception):
                value = as_plain(self.parser.parse_override(typed or "").value())
                shown = f"[{','.join(map(str.strip, value))}]" if isinstance(value, list) else value
                if "=" in line and shown == re.sub(r"\s*,\s*", ",", line.partition("=")[2]):
                    accepts(value)
                    return f"If it is {kind}, type {shell(str(typed))}"
        return None

    def checked(self, config: DictConfig, hydra: DictConfig, lines: Sequence[str]) -> Checked:
        """`check_config`, where the error about a key that one of `lines` sets says how to type it."""

        def hint(key: str, rule: Constraint) -> str:
            own = [line for line in lines if self.parse(line).key_or_group == key]
            return next(filter(None, (self.hint(line, partial(rule.check, key)) for line in own)), "")

        return check_config(config, hydra, hint)

    def refuse_unlisted(self, override: Override, sweeper: str) -> None:
        """Raise RequestError when an override expands to no values, unless `sweeper` samples them."""
        if not override.is_interval_sweep():
            raise RequestError(f"{override.input_line}: expands to no value. Give at least one.")
        if sweeper.startswith("hydra._internal."):
            raise RequestError(
                f"{override.input_line}: needs a sweeper that samples, such as hydra/sweeper=optuna. "
                "List the values, or say range(...)."
            )

    def check_choice(self, override: Override) -> None:
        """Raise RequestError when an override chooses what its group does not have."""
        group = override.key_or_group
        if group not in self.groups or override.is_delete():
            return
        options = self.loader.get_group_options(group)
        if override.is_sweep_override():
            ranged = isinstance(override.value(), RangeSweep)  # numbers, and perhaps very many
            lines = first(override) if ranged else elements(override)
            values = [line.split("=", 1)[1] for line in lines]
        else:
            values = [str(override.value()) if override.value() is not None else "null"]
        if not values:
            raise RequestError(f"{override.input_line}: names no choice of {group}. There are {', '.join(options)}.")
        for value in values:
            if value not in options and (group, value) != ("experiment", "null"):
                known = ", ".join(options)
                end = suggestion(value, options) if nearest_key(value, options) else ""
                raise RequestError(f"{group}={value}: no such choice. {end}{' ' if end else ''}There are {known}.")

    def compose(self, lines: list[str]) -> tuple[DictConfig, DictConfig]:
        """The configuration of one run and Hydra's own part of it. Raises RequestError."""
        lines = [line for line in lines if line != NONE]
        overrides = [self.parse(line) for line in lines]
        if not any(override.is_delete() for override in overrides):
            try:
                config, hydra = compose_files(self.name, lines)
                self.refuse_keys(overrides, config, hydra)
                return config, hydra
            except RequestError as error:
                failure = error
        choices = [override.input_line or "" for override in overrides if override.key_or_group in self.groups]
        self.refuse_keys(overrides, *compose_files(self.name, choices))  # which says it in fewer words
        if not any(override.is_delete() for override in overrides):
            raise failure
        return compose_files(self.name, lines)

    def refuse_keys(self, overrides: Sequence[Override], config: DictConfig, hydra: DictConfig) -> None:
        """Raise RequestError for keys of the command line that no file defines, and for those that can't be deleted.

        Args:
            config, hydra: composed of the choices; their keys are those that there are.
        """
        rules = constraints_of(hydra)
        there: Any = OmegaConf.to_container(config)
        unknown = {key for key, _ in leaves(there)} - rules.keys()

        def check(override: Override) -> None:
            key = override.key_or_group
            if key.startswith("hydra") or key in self.groups or (override.is_delete() and key in unknown):
                return
            if key not in rules and not any(rule.startswith(f"{key}.") for rule in rules):
                group = key.split(".")[0]
                options = self.loader.get_group_options(group) if group in self.groups else []
                if others := choices_with(key, options, hydra):
                    told = f"no such key of {group}={hydra.runtime.choices.get(group)}. It is one of {group}={others}."
                    raise RequestError(f"{key}: {told}")
                raise RequestError(f"{key}: no such key. {suggestion(key, [*rules, *self.groups])}")
            if override.is_delete():
                raise RequestError(f"{override.input_line}: a key can't be taken away, only changed.")

        gather(check, overrides)


def as_plain(value: Any) -> Any:
    """A value of Hydra's override grammar as plain Python."""
    if isinstance(value, list):
        return [as_plain(item) for item in value]
    return str(value) if type(value).__name__ == "QuotedString" else value


@contextlib.contextmanager
def checker(config_dir: Path | str | None = None, name: str = "train") -> Iterator[Checker]:
    """A Checker over mcls's own configuration files and those in `config_dir`."""
    with config_loader(config_dir, name) as loader:
        yield Checker(loader, name)
