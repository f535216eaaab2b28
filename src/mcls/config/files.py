"""Hydra as mcls uses it: where the configuration files are, and one composition of them."""

import contextlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_automatic_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mcls.config.overrides import nearest_key, suggestion
from mcls.config.validate import CONFIGS, refuse_duplicates
from mcls.errors import RequestError
from mcls.runs.folder import job_name, read_json

OmegaConf.register_new_resolver("mcls.job_name", job_name, replace=True)


def compose_files(name: str, overrides: list[str]) -> tuple[DictConfig, DictConfig]:
    """Hydra's own composition: the configuration, and Hydra's part."""
    try:
        config = hydra_compose(name, overrides, return_hydra_config=True)
        HydraConfig.instance().set_config(config)  # which ${hydra:...} looks at
        return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]), config.hydra
    except (HydraException, OmegaConfBaseException) as error:
        text = " ".join(str(error).split()).partition(" Config search path:")[0]
        for kind, plugin in re.findall(r"Could not find 'hydra/(sweeper|launcher)/(\w+)'", text):
            instead = "Use search=tpe" if kind == "sweeper" else "The jobs of a sweep run one after the other"
            raise RequestError(f"hydra/{kind}={plugin}: not installed. {instead}.") from error
        raise RequestError(in_words(name, overrides, text)) from error
    except Exception as error:  # Hydra leaks others for values that it can't place
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise RequestError(f"{' '.join(overrides)}: Hydra can't compose this ({text}).") from error


def in_words(name: str, overrides: list[str], text: str) -> str:
    """What Hydra says of files that do not compose, as mcls says it of the command line."""
    if "Cannot find primary config" in text:
        return f"--config-name: no file {name}.yaml in mcls's configuration files or in --config-dir."
    if match := re.match(r"In '(.+)': Could not find '(.+)/(.+)' Available options in '.+': (.+)", text):
        recipe = [line.replace("=", "/", 1) for line in overrides if line.startswith("experiment=")]
        file, group, choice, options = [*recipe, match[1]][0], match[2], match[3], match[4].split()
        near = f"{suggestion(choice, options)} " if nearest_key(choice, options) else ""
        return f"{file}.yaml: {group}={choice}: no such choice. {near}There are {', '.join(options)}."
    if match := re.match(r"In '(.+)': Could not override '(.+)'\. No match in the defaults list", text):
        return f"{match[1]}.yaml: override /{match[2]}: no such group in the defaults list."
    return f"the configuration does not compose: {text}"


@contextlib.contextmanager
def config_loader(config_dir: Path | str | None, name: str) -> Iterator[ConfigLoader]:
    """Hydra's loader of mcls's configuration files and those in `config_dir`; while entered, Hydra composes them."""
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
    instance, settings = GlobalHydra.instance(), HydraConfig.instance()
    before = instance.hydra, settings.cfg  # of a program that uses Hydra itself
    instance.clear()
    version.setbase("1.3")
    try:
        yield Hydra.create_main_hydra2("train", path).config_loader
    finally:
        instance.hydra, settings.cfg = before
