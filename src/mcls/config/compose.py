"""From a command line to checked dictionaries, without importing torch.

Hydra composes; what it composes is then held against the rules in the YAML files, and what it refuses is said again in
one line that names the nearest thing that exists.
"""

import contextlib
import itertools
import logging
import math
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_automatic_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, RangeSweep
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from mcls.config.overrides import (
    as_list,
    as_text,
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
from mcls.config.schema import Constraint, leaves
from mcls.config.validate import CONFIGS, check_config, constraints_of, refuse_duplicates
from mcls.errors import MachineError, RequestError
from mcls.runs.folder import job_name, read_json
from mcls.runs.renamed import KEYS, rename_line, today

log = logging.getLogger("mcls")

EXTRAS = {"optuna": "hpo", "joblib": "sweep", "submitit": "sweep"}  # of mcls, that bring Hydra's plugins
TYPESET = "typographic minus or quotation marks. Type"
Checked = tuple[dict[str, Any], dict[str, str]]
NONE = "experiment=null"  # which Hydra does not take
COMBINATIONS = 64  # of swept groups, each composed before the sweep begins


OmegaConf.register_new_resolver("mcls.job_name", job_name, replace=True)


@dataclass(frozen=True)
class Request:
    """A checked command line.

    Args:
        config: the configuration of the run, or of a sweep's first job; plain dictionaries and lists.
        choices: what was chosen from each group.
        sweep: whether many runs were asked for.
        folder: hydra.run.dir or hydra.sweep.dir, where the command line gives it.
        fixed: the keys that have one value for all jobs of a sweep.
        jobs: the overrides of each job of a sweep; empty where Hydra alone knows them.
        sweeper: the class of Hydra's that goes through them.
        overrides: the command line's, under the names of today.
    """

    config: dict[str, Any]
    choices: dict[str, str]
    sweep: bool
    folder: str | None
    fixed: list[str]
    jobs: list[list[str]]
    sweeper: str
    overrides: list[str]


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
        """Compose what is asked for, every choice of a sweep included. Raises RequestError at the first thing wrong."""
        overrides = self.renamed(overrides)
        parsed = [self.parse(override) for override in overrides]
        for override in parsed:
            self.check_choice(override)
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
            rules = constraints_of(hydra)
            for line in itertools.chain.from_iterable(by_key):
                key, value = self.parse(line).key_or_group, as_plain(self.parse(line).value())
                if key in rules:
                    rules[key].check(key, value)
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
        known = sweep and sweeper.endswith(".BasicSweeper") and not hydra.sweeper.get("params")
        jobs = planned(parsed, listed) if known else []
        return Request(values, choices, sweep, folder, keys, jobs, sweeper, overrides)

    def listed(self, fixed: list[str], swept: list[Override]) -> dict[str, list[str]]:
        """What swept overrides stand for, by key; none of it is listed before sweep.max_jobs allows the sweep."""
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
            rules = constraints_of(self.hydra_compose([text for text in texts if text != NONE])[1])
        named = [rename_line(line, key, today(key, rules)) for line, key in zip(lines, keys, strict=True)]
        for line, new in zip(lines, named, strict=True):
            if line != new:
                log.warning(f"{line}: is called {new} now")
        return named

    def parse(self, override: str) -> Override:
        """One override, parsed by Hydra's grammar."""
        plain = typeset(override)
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
        """`checked`, where the error about a key that one of `lines` sets says how that is to be typed."""
        try:
            return check_config(config, hydra)
        except RequestError as error:
            key = str(error).split(":")[0]
            rule = constraints_of(hydra).get(key) if str(error).startswith(f"{key}: must be") else None
            for line in lines:
                if (
                    rule
                    and self.parse(line).key_or_group == key
                    and (hint := self.hint(line, partial(rule.check, key)))
                ):
                    raise RequestError(f"{error} {hint}") from error
            raise

    def refuse_unlisted(self, override: Override, sweeper: str) -> None:
        """Raise RequestError when an override stands for no values, unless `sweeper` is one that finds some itself."""
        if not override.is_interval_sweep():
            raise RequestError(f"{override.input_line}: stands for no value. Give at least one.")
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
        choices = [line for line in lines if self.parse(line).key_or_group in self.groups]
        config, hydra = self.hydra_compose(choices)
        if choices == lines:
            return config, hydra
        rules = constraints_of(hydra)
        known = [*rules, *self.groups]
        there: Any = OmegaConf.to_container(config)
        strangers = {key for key, _ in leaves(there)} - rules.keys()
        for line in lines:
            override = self.parse(line)
            key = override.key_or_group
            if key.startswith("hydra") or key in self.groups or (override.is_delete() and key in strangers):
                continue
            if key not in rules and not any(rule.startswith(f"{key}.") for rule in rules):
                raise RequestError(f"{key}: no such key. {suggestion(key, known)}")
            if override.is_delete():
                raise RequestError(f"{line}: a key can't be taken away, only changed.")
        return self.hydra_compose(lines)

    def hydra_compose(self, overrides: list[str]) -> tuple[DictConfig, DictConfig]:
        """Hydra's own composition: the configuration, and Hydra's part."""
        try:
            config = hydra_compose(self.name, overrides, return_hydra_config=True)
            hydra = config.hydra
            with open_dict(config):
                del config["hydra"]
            return config, hydra
        except (HydraException, OmegaConfBaseException) as error:
            text = " ".join(str(error).split()).partition(" Config search path:")[0]
            for kind, name in re.findall(r"Could not find 'hydra/(sweeper|launcher)/(\w+)'", text):
                extra = EXTRAS.get(name.split("_")[0])
                if extra:
                    told = f"hydra/{kind}={name}: not installed. Install what it takes: pip install 'mcls[{extra}]'"
                    raise MachineError(told) from error
            raise RequestError(f"the configuration does not compose: {text}") from error
        except Exception as error:  # Hydra leaks others for values that it can't place
            text = " ".join(f"{type(error).__name__}: {error}".split())
            raise RequestError(f"{' '.join(overrides)}: Hydra can't compose this ({text}).") from error


def as_plain(value: Any) -> Any:
    """A value of Hydra's override grammar as plain Python."""
    if isinstance(value, list):
        return [as_plain(item) for item in value]
    return str(value) if type(value).__name__ == "QuotedString" else value


@contextlib.contextmanager
def checker(config_dir: Path | str | None = None, name: str = "train") -> Iterator[Checker]:
    """A Checker over mcls's own configuration files and those in `config_dir`."""
    path = create_automatic_config_search_path(calling_file=None, calling_module=None, config_path=f"pkg://{CONFIGS}")
    if config_dir is not None:
        folder = Path(config_dir).absolute()
        if not folder.is_dir():
            raise RequestError(f"--config-dir: no folder {folder}.")
        refuse_duplicates(folder)
        if name.removesuffix(".yaml") == "config" and (folder / "run.json").is_file():
            again = shlex.join(["mcls", "train", *map(str, read_json(folder / "run.json").get("overrides", []))])
            raise RequestError(f"--config-name: {config_dir} is a run's folder. To train the same again: {again}")
        path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
    instance = GlobalHydra.instance()
    instance.clear()
    version.setbase("1.3")
    try:
        yield Checker(Hydra.create_main_hydra2("train", path).config_loader, name)
    finally:
        instance.clear()
