"""The configuration of a finished or broken-off run, read back from its folder as data and checked like a fresh one."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from mcls.config.build import OWN, check_target
from mcls.config.compose import CONFIGS, leaves, suggestion
from mcls.config.schema import Rule, read_rules, show
from mcls.errors import FolderError, RequestError
from mcls.runs import RunFolder, read_json, read_yaml

# keys that do not change what is trained; the first may only grow
HARMLESS = (
    "trainer.epochs",
    "trainer.log_every",
    "trainer.checkpoint_every",
    "trainer.checkpoint_steps",
    "trainer.workers",
    "trainer.resident",
    "trainer.figures",
    "dataset.root",
    "dataset.download",
    "trust",
)


def stored_config(folder: RunFolder, changes: Sequence[str] = ()) -> dict[str, Any]:
    """The configuration of the run in `folder`, with `changes` (`key=value`) that do not change what is trained.

    The folder's own list of trusted packages counts for nothing; `trust=[...]` among the changes does.

    Raises FolderError when config.yaml is damaged or refused, RequestError for a change that is not allowed.
    """
    config = read_yaml(folder.config)
    choices = read_json(folder.about).get("choices")
    if not isinstance(choices, dict):
        raise FolderError(f"{folder.about}: damaged, it does not say what was chosen.")
    rules = shipped_rules({str(group): str(choice) for group, choice in choices.items()})
    given = dict(map(assignment, changes))
    known = dict(leaves(config))
    config["trust"] = given.get("trust", [])
    try:
        for key in given:
            change(config, known, rules, key, given[key])
        for key, value in leaves(config):
            if rule := rules.get(key):
                rule.check(key, value)
        for group in OWN:
            if (target := config[group]["_target_"]) is not None:
                check_target(group, target, config["trust"])
    except RequestError as error:
        if str(error).split(":")[0].split("=")[0] in given:
            raise
        raise FolderError(f"{folder.config}: refused: {error}") from error
    except (KeyError, TypeError) as error:
        raise FolderError(f"{folder.config}: damaged, it lacks {error}.") from error
    return config


def assignment(text: str) -> tuple[str, Any]:
    """`key=value` as a key and a YAML value."""
    key, equals, value = text.partition("=")
    if not equals:
        raise RequestError(f"{text}: not of the form key=value.")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RequestError(f"{text}: {value!r} is not a YAML value.") from error


def change(config: dict[str, Any], known: dict[str, Any], rules: dict[str, Rule], key: str, value: Any) -> None:
    """Change one key of `config`, if that is allowed. Raises RequestError."""
    if key not in known:
        raise RequestError(f"{key}: no such key. {suggestion(key, list(known))}")
    if key not in HARMLESS and value != known[key]:
        raise RequestError(
            f"{key}: {show(known[key])} -> {show(value)} would change what was trained. Begin a new run: mcls train."
        )
    if key == HARMLESS[0] and isinstance(value, int) and value < known[key]:
        raise RequestError(f"{key}: {known[key]} -> {value} would take back what was trained. Give a larger number.")
    place = config
    *parents, last = key.split(".")
    for parent in parents:
        place = place[parent]
    place[last] = rules[key].check(key, value) if key in rules else value


def shipped_rules(choices: dict[str, str]) -> dict[str, Rule]:
    """The rules of mcls's own files for these choices; a file that mcls does not ship has none."""
    root = Path(str(files(CONFIGS)))
    found = dict(read_rules(root / "train.yaml"))
    shipped = {path.relative_to(root).with_suffix("").as_posix(): path for path in root.glob("*/*.yaml")}
    for group, choice in choices.items():
        if group != "experiment" and f"{group}/{choice}" in shipped:
            found |= {f"{group}.{key}": rule for key, rule in read_rules(shipped[f"{group}/{choice}"]).items()}
    return found
