"""From a command line to checked dictionaries, without importing torch.

Hydra composes the configuration; it is then checked against the constraints in the YAML files. Hydra's errors become
one line each, with the nearest existing name.
"""

import contextlib
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mcls.config.files import compose_files, config_loader
from mcls.config.jobs import Base, Job, Request
from mcls.config.overrides import (
    as_list,
    as_plain,
    as_text,
    blamed,
    first,
    refuse_choice,
    shell,
    shell_quoted,
    suggestion,
    typeset,
)
from mcls.config.schema import Constraint, gather, leaves
from mcls.config.sweeps import (
    axes_of,
    expand,
    halving_of,
    has_key,
    refuse_constant,
    refuse_plugins,
    search_of,
    sweep_command,
    take_sweeps_own,
)
from mcls.config.validate import check_config, choices_with, constraints_of, folder_of, key_elsewhere
from mcls.errors import RequestError
from mcls.runs.renamed import KEYS, rename_line, today

log = logging.getLogger("mcls")

TYPESET = "typographic minus or quotation marks. Type"
Checked = tuple[dict[str, Any], dict[str, str]]
NONE = "experiment=null"  # which Hydra does not take
TOGETHER = re.compile(
    r"(-m|search|launcher): needs a key |search\.rungs: \d+ rungs "
)  # errors of several keys, one of which may be left out
REFERS = re.compile(r"\$\{(?!oc\.env:)")  # a value made of another key's


class Checker:
    """Checks command lines against the configuration files that Hydra finds.

    Args:
        loader: Hydra's.
        name: of the primary configuration.
        flags: that name its files on the command line.
    """

    def __init__(self, loader: ConfigLoader, name: str, flags: Sequence[str] = ()) -> None:
        self.loader, self.name, self.flags = loader, name, flags
        self.parser = OverridesParser.create(config_loader=loader)
        self.groups = [group for group in loader.list_groups("") if group != "hydra"]

    def check(self, overrides: list[str], multirun: bool, typed: Sequence[str] = ()) -> Request:
        """Compose and check a command line, including every choice of a sweep. Raises RequestError, one line per error.

        Overrides that the first errors do not concern are checked again, to report all at once; `typed` has them all.
        """
        try:
            return self.check_once(overrides, multirun, typed or overrides)
        except RequestError as error:
            rest = [line for line in overrides if not blamed(line, str(error))]
            if len(rest) in (0, len(overrides)) or str(error).startswith("experiment"):
                raise
            try:
                self.check(rest, multirun, typed or overrides)
            except RequestError as other:
                others = [line for line in str(other).split("\n") if not TOGETHER.match(line)]
                lines = dict.fromkeys([*str(error).split("\n"), *others])
                raise RequestError("\n".join(lines)) from error
            raise

    def check_once(self, overrides: list[str], multirun: bool, typed: Sequence[str]) -> Request:
        """`check`, but stops at the first error."""
        overrides = self.renamed(overrides)
        parsed = gather(self.parse, overrides)
        gather(self.check_choice, parsed)
        swept = [override for override in parsed if override.is_sweep_override()]
        mode = {str(override.value()) for override in parsed if override.key_or_group == "hydra.mode"}
        if swept and not multirun and RunMode.MULTIRUN.name not in mode:
            line, whole = swept[0].input_line or "", sweep_command([*self.flags, *typed], swept)
            raise RequestError(
                f"{line}: several values make a sweep. Use {whole}, or if it is a text {shell_quoted(line)}."
            )
        own = [override for override in parsed if not override.key_or_group.startswith(("hydra", "launcher"))]
        begin = [line for override in parsed for line in first(override)]
        hydra, config, choices = self.first(parsed, begin, overrides)
        if hydra.job.chdir:
            raise RequestError(
                "hydra.job.chdir: true, but relative paths are those of the folder you are in. Set it to false."
            )
        settings, launcher = take_sweeps_own(config, choices)
        sweep = multirun or hydra.mode == RunMode.MULTIRUN
        refuse_plugins(hydra)
        bases: list[Base] = []
        jobs: list[Job] = []
        search = None
        if not swept:
            refuse_constant(sweep, settings, launcher, [*self.flags, *typed])
        if sweep and "trials" in settings:
            search = search_of(settings, own, constraints_of(hydra), self.groups, config["sweep"]["max_jobs"])
        elif sweep:
            axes = axes_of(swept, config["sweep"]["zip"], config["sweep"]["max_jobs"])
            partly = any(override.key_or_group in self.groups for override in swept)
            listed = [override for override in own if override.key_or_group.partition(".")[0] != "search"]
            bases, jobs = expand(listed, axes, self.groups, partial(self.base, overrides, partly))
            search = halving_of(settings, bases, jobs) if settings else None
        folder_key = "hydra.sweep.dir" if sweep else "hydra.run.dir"
        given = any(override.key_or_group == folder_key for override in parsed)
        try:
            folder = str(hydra.sweep.dir if sweep else hydra.run.dir) if given else None
        except OmegaConfBaseException as error:
            raise RequestError(f"{folder_key}: {' '.join(str(error).split())}") from error
        if config["name"] is not None:
            folder = folder_of(config, "Use sweep.name" if sweep else f"Leave out {folder_key}" * given)
        if places := [override for override in swept if override.key_or_group.startswith("launcher")]:
            raise RequestError(f"{places[0].input_line}: a sweep has one launcher. Give it one value.")
        keys = [override.key_or_group for override in own if override not in swept]
        keys += [override.key_or_group for override in parsed if override.key_or_group.startswith("hydra")]
        env = {str(key): str(value) for key, value in hydra.job.env_set.items()}
        return Request(config, choices, sweep, folder, keys, bases, jobs, search, launcher, overrides, env)

    def first(
        self, parsed: Sequence[Override], lines: list[str], typed: Sequence[str]
    ) -> tuple[DictConfig, dict[str, Any], dict[str, str]]:
        """Hydra's part, the configuration and the choices of a run, or of a sweep's first job."""
        partly = any(override.is_sweep_override() and override.key_or_group in self.groups for override in parsed)
        config, hydra = self.compose(self.present(lines) if partly else lines)
        return hydra, *self.checked(config, hydra, typed)

    def present(self, lines: Sequence[str]) -> list[str]:
        """`lines` without keys that the chosen YAML files do not have."""
        parsed = [self.parse(line) for line in lines]
        chosen = [line for line, override in zip(lines, parsed, strict=True) if override.key_or_group in self.groups]
        rules = constraints_of(compose_files(self.name, [line for line in chosen if line != NONE])[1])
        base = Base({}, {}, rules)
        return [
            line
            for line, override in zip(lines, parsed, strict=True)
            if override.key_or_group.startswith("hydra") or has_key(override, base, self.groups)
        ]

    def base(self, typed: Sequence[str], partly: bool, lines: list[str]) -> Base:
        """The configuration of jobs with the choices in `lines`; `partly`: a key may belong to some choices only."""
        config, hydra = self.compose(self.present(lines) if partly else lines)
        plain: Any = OmegaConf.to_container(config)  # with what refers to other keys as it stands in the files
        refers = any(REFERS.search(str(value)) for _, value in leaves(plain))
        values, choices = self.checked(config, hydra, typed)
        take_sweeps_own(values, choices)
        return Base(values, choices, constraints_of(hydra), refers)

    def job_folder(self, lines: list[str], index: int) -> str:
        """The name that hydra.sweep.subdir gives to the folder of a job."""
        _, hydra = compose_files(self.name, [*lines, f"hydra.job.num={index}"])
        return str(hydra.sweep.subdir)

    def values(self, overrides: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
        """The checked configuration of one run, and its choices. Raises RequestError."""
        overrides = self.renamed(overrides)
        values, choices = self.checked(*self.compose(overrides), overrides)
        take_sweeps_own(values, choices)
        return values, choices

    def launcher(self, lines: Sequence[str]) -> dict[str, Any]:
        """The settings of configs/launcher that overrides of it ask for. Raises RequestError."""
        values, choices = self.checked(*self.compose(list(lines)), lines)
        return take_sweeps_own(values, choices)[1]

    def trial(self, changes: Sequence[str], lines: list[str]) -> Base:
        """The configuration of a job that a search chose; `changes` say what to trust and where the data are."""
        return Base(*self.values([*lines, *changes]))

    def renamed(self, lines: list[str]) -> list[str]:
        """`lines` with old names of keys and values replaced by their current ones."""
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
        """How to type `key=value` so that Hydra parses it as the text, or the list of texts, that it shows.

        Only suggests what Hydra's own parser confirms, and only if `accepts` does not reject the value.
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
        """`check_config`; errors about a key that one of `lines` sets say how to type it."""

        def hint(key: str, rule: Constraint) -> str:
            own = [line for line in lines if self.parse(line).key_or_group == key]
            return next(filter(None, (self.hint(line, partial(rule.check, key)) for line in own)), "")

        return check_config(config, hydra, hint)

    def check_choice(self, override: Override) -> None:
        """Raise RequestError if an override names a choice that its group does not have."""
        if override.key_or_group in self.groups and not override.is_delete():
            refuse_choice(override, self.loader.get_group_options(override.key_or_group))

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
                elsewhere = key_elsewhere(key, rules, self.loader.get_group_options, hydra)
                raise RequestError(f"{key}: no such key. {elsewhere or suggestion(key, [*rules, *self.groups])}")
            if override.is_delete():
                raise RequestError(f"{override.input_line}: a key can't be taken away, only changed.")

        gather(check, overrides)


@contextlib.contextmanager
def checker(config_dir: Path | str | None = None, name: str = "train") -> Iterator[Checker]:
    """A Checker over mcls's own configuration files and those in `config_dir`."""
    flags = ["--config-dir", str(config_dir)] if config_dir else []
    with config_loader(config_dir, name) as loader:
        yield Checker(loader, name, flags if name == "train" else [*flags, "--config-name", name])
