"""Check what Hydra composed against the constraints in the YAML files; no untrusted code that it names is run."""

import difflib
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mcls.config.instantiate import OWN, check_target
from mcls.config.overrides import meaning, suggestion
from mcls.config.schema import Constraint, gather, leaves, put, read_constraints, yaml_text
from mcls.errors import RequestError
from mcls.runs.folder import named_folder
from mcls.runs.renamed import rename

log = logging.getLogger("mcls")

CONFIGS = "mcls.configs"
GLOBAL = "# @package _global_"
# what Hydra's part of a configuration may have made: plugins, log handlers
HYDRAS_OWN = re.compile(
    r"(hydra\._internal\.core_plugins|hydra_plugins|hydra\.experimental\.callbacks)\.[\w.]+"
    r"|logging\.(handlers\.)?[A-Z]\w+|ext://sys\.\w+"
)


def constraints_of(hydra: DictConfig) -> dict[str, Constraint]:
    """The rules of every key, by dotted key, from the files that Hydra says it composed (its `hydra` node)."""
    constraints = dict(read_choice(f"{hydra.job.config_name}.yaml", "", hydra))
    for group, choice in hydra.runtime.choices.items():
        if choice and not group.startswith("hydra"):
            for one in [choice] if isinstance(choice, str) else choice:
                constraints |= read_choice(f"{group}/{one}.yaml", f"{group}.", hydra)
    return constraints


def config_roots(hydra: DictConfig) -> list[Path]:
    """The folders of Hydra's sources, first to last."""
    sources = [source for source in hydra.runtime.config_sources if source.schema in ("pkg", "file")]
    return [Path(str(files(source.path))) if source.schema == "pkg" else Path(source.path) for source in sources]


def choice_file(file: str, hydra: DictConfig) -> Path | None:
    """`file` of the first of Hydra's sources that has it."""
    return next((root / file for root in config_roots(hydra) if (root / file).is_file()), None)


def read_choice(file: str, prefix: str, hydra: DictConfig) -> dict[str, Constraint]:
    """The rules in `file` of the first of Hydra's sources that has it; a recipe has none, it only sets keys."""
    path = choice_file(file, hydra)
    if path is None or path.read_text("utf-8").startswith(GLOBAL):
        return {}
    return {prefix + key: rule for key, rule in read_constraints(path, config_roots(hydra)).items()}


def choices_with(key: str, options: list[str], hydra: DictConfig) -> str:
    """Which `options` of the group of `key` have it."""
    group = key.split(".")[0]
    return ", ".join(name for name in options if key in read_choice(f"{group}/{name}.yaml", f"{group}.", hydra))


def key_elsewhere(
    word: str, rules: dict[str, Constraint], options: Callable[[str], list[str]], hydra: DictConfig
) -> str | None:
    """`Did you mean KEY, of GROUP=CHOICE?`, where another tool's `word` is the key of choices that were not made.

    Args:
        rules: of the keys of those that were.
        options: the choices of a group, none of another name.
    """
    key = meaning(word) or ""
    group = key.split(".")[0]
    others = choices_with(key, options(group), hydra) if "." in key and key not in rules else ""
    return f"Did you mean {key}, of {group}={others}?" if others else None


def check_config(
    config: DictConfig, hydra: DictConfig, hint: Callable[[str, Constraint], str] = lambda key, rule: ""
) -> tuple[dict[str, Any], dict[str, str]]:
    """A composed configuration as plain dictionaries, resolved and checked, and what was chosen from each group.

    Args:
        config: without Hydra's own part.
        hydra: that part.
        hint: how the value of a key that breaks its constraint has to be typed, for the message.

    Raises RequestError with a line for each key that breaks its constraint.
    """
    choices = {group: str(choice) for group, choice in hydra.runtime.choices.items() if choice and "/" not in group}
    if config.get("experiment") is not None:
        raise RequestError(f"experiment={choices.get('experiment')}: its file must begin with `{GLOBAL}`.")
    rules = constraints_of(hydra)
    try:
        values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        text = " ".join(str(error).split())
        if match := re.match(r"Interpolation key '(.+)' not found full_key: (\S+)", text):
            text = f"{match[2]}: ${{{match[1]}}} refers to a key that does not exist."
        raise RequestError(text) from error
    refuse_code(hydra, values.get("trust"))
    typed = {line.lstrip("+").split("=")[0] for line in hydra.overrides.task}
    for old, new in rename(values, rules, typed).items():
        log.warning(f"{old} was renamed to {new}")
    refuse_unknown_keys(values, rules, choices)

    def check(entry: tuple[str, Any]) -> None:
        key, value = entry
        try:
            put(values, key, rules[key].check(key, value))
        except RequestError as error:
            raise RequestError(f"{error} {hint(key, rules[key])}".rstrip()) from error

    gather(check, list(leaves(values)))
    for group in OWN:
        if not isinstance(values.get(group), dict):
            raise RequestError(f"{group}: must be one of the choices of its group, got {yaml_text(values.get(group))}.")
        check_target(group, values[group].get("_target_"), values.get("trust", []))
    check_fold(values["dataset"])
    if absent := [
        key for key in read_constraints(Path(str(files(CONFIGS))) / "train.yaml") if key.split(".")[0] not in values
    ]:
        raise RequestError(f"{absent[0]}: missing in {hydra.job.config_name}.yaml. Begin its defaults with: - train")
    return values, choices


def check_fold(dataset: Mapping[str, Any]) -> None:
    """Raise RequestError unless `fold`, of the keys of a data set of mcls's own, is one of its `folds`."""
    folds, fold = dataset.get("folds"), dataset.get("fold")
    if not dataset["_target_"].startswith("mcls.datasets.") or folds == fold is None:
        return
    if folds is None:
        raise RequestError(f"dataset.fold: {fold} of how many? Set dataset.folds, such as dataset.folds=5.")
    if fold is None:
        every = f"mcls train -m dataset.folds={folds} 'dataset.fold=range(0,{folds})'"
        raise RequestError(f"dataset.folds: {folds}, but dataset.fold is not set. Set it, or train all: {every}")
    if fold >= folds:
        raise RequestError(f"dataset.fold: must be 0 to {folds - 1} with dataset.folds={folds}, got {fold}.")


def refuse_code(hydra: DictConfig, trust: Any) -> None:
    """Raise RequestError for what would run code that the command line does not name: a file is never believed.

    Args:
        hydra: Hydra's part of the configuration. It makes objects of its own: callbacks, log handlers, samplers.
        trust: the packages that the configuration trusts.
    """
    overrides: Any = OmegaConf.to_container(hydra.overrides)  # unresolved: a job's number is not known yet
    given = {line.lstrip("+").split("=")[0] for line in [*overrides["task"], *overrides["hydra"]]}
    if trust and (
        "trust" not in given or any(line.startswith("trust=") and "${" in line for line in overrides["task"])
    ):
        raise RequestError(f"trust: a file says {yaml_text(trust)}; only the command line may. Set trust=[...] there.")
    if hydra.job.env_set and not any(key.startswith("hydra.job.env_set") for key in given):
        raise RequestError("hydra.job.env_set: set by a file; only the command line may.")
    for key, value in deep_leaves(OmegaConf.to_container(hydra)):
        makes = key in ("_target_", "()", "class") or (
            isinstance(value, str) and value.startswith(("ext://", "cfg://"))
        )
        typed = any(line.partition("=")[2] == str(value) for line in overrides["hydra"])
        own = typed or str(value).startswith(
            tuple(f"{package}." for package in (trust if isinstance(trust, list) else []))
        )
        if makes and not own and not HYDRAS_OWN.fullmatch(str(value)):
            raise RequestError(f"hydra: {key} {value} is not allowed here. For a package of your own set trust=[...].")


def deep_leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value at any depth of dictionaries and lists, with the key that it, or its list, has."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from deep_leaves(value, str(name))
    elif isinstance(node, list):
        for value in node:
            yield from deep_leaves(value, key)
    else:
        yield key, node


def refuse_unknown_keys(values: dict[str, Any], rules: dict[str, Constraint], choices: dict[str, str]) -> None:
    """Raise RequestError for a key without a rule: a file sets it, those of the command line are known to have one."""
    strangers = {key: value for key, value in leaves(values) if key not in rules}
    for key, value in strangers.items():
        group, recipe = key.split(".")[0], choices.get("experiment")
        mistyped = difflib.get_close_matches(key, list(rules), n=1, cutoff=0.9)
        if recipe and group in choices and not mistyped:
            raise RequestError(
                f"experiment={recipe} sets {key}, which {group}={choices[group]} does not have. "
                f"Take it away with {' '.join(f'~{other}' for other in strangers)}"
            )
        near = f"Did you mean {mistyped[0]}?" if mistyped else suggestion(key, list(rules))
        prefix = f"experiment/{recipe}.yaml: " if recipe else ""
        raise RequestError(f"{prefix}{key}: no such key, got {yaml_text(value)}. {near}")


def refuse_duplicates(folder: Path) -> None:
    """Raise RequestError for a file in `folder` that Hydra would not look at: mcls has another one of that name."""
    root = Path(str(files(CONFIGS)))
    for path in sorted([*folder.glob("*.yaml"), *folder.glob("*/*.yaml")]):
        shipped = root / path.relative_to(folder)
        if shipped.is_file() and shipped.read_bytes() != path.read_bytes():
            raise RequestError(f"--config-dir: {path} has the name of one of mcls's own files. Give it another name.")


def folder_of(config: dict[str, Any], instead: str) -> str:
    """The run folder that the key `name` gives. Raises RequestError for a bad name, or for what is done `instead`."""
    if instead:
        raise RequestError(f"name: names one run. {instead}.")
    return str(named_folder(Path(config["outputs"]), "name", config["name"]))
