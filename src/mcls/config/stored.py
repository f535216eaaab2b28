"""The configuration of a finished or broken-off run, read back from its folder as data and checked like a fresh one."""

import inspect
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from mcls.config.build import OWN, check_target, resolve
from mcls.config.checking import CONFIGS
from mcls.config.schema import Rule, leaves, put, read_rules, show
from mcls.config.words import suggestion
from mcls.errors import FolderError, RequestError
from mcls.runs import RunFolder, read_json, read_yaml

LENGTH = ("trainer.epochs", "trainer.patience")  # how long is trained; not to less than has been
# keys that do not change what is trained
HARMLESS = (
    "trainer.log_every",
    "trainer.checkpoint_every",
    "trainer.checkpoint_steps",
    "trainer.workers",
    "trainer.resident",
    "trainer.figures",
    "dataset.root",
    "dataset.path",
    "dataset.test_path",
    "dataset.download",
    "trust",
    "sweep.test",
    "sweep.max_jobs",
)

WEIGHTS = ("weights", "weights_backbone", "pretrained", "pretrained_backbone")  # arguments that name trained ones


def stored_config(folder: RunFolder, changes: Sequence[str] = ()) -> dict[str, Any]:
    """The configuration of the run in `folder`, with `changes` (`key=value`) that do not change what is trained.

    The folder's own list of trusted packages counts for nothing; `trust=[...]` among the changes does. Nor does it
    decide that something is downloaded; `dataset.download=true` among the changes does.

    Raises FolderError when config.yaml is damaged or refused, RequestError for a change that is not allowed.
    """
    return accept(read_yaml(folder.config), read_json(folder.about).get("choices"), changes, folder.config)


def accept(config: dict[str, Any], choices: Any, changes: Sequence[str], source: Path) -> dict[str, Any]:
    """`config`, read from file `source` of unknown origin, checked like a fresh one; see `stored_config`."""
    if not isinstance(choices, dict) or not all(isinstance(choice, str) for choice in choices.values()):
        raise FolderError(f"{source}: damaged, it is not known what was chosen.")
    rules = shipped_rules(choices)
    given = dict(map(assignment, changes))
    try:
        check_shape(config, rules, choices)
        known = dict(leaves(config))
        config["trust"] = given.get("trust", [])
        if "download" in config["dataset"]:
            config["dataset"]["download"] = False
        for key in given:
            change(config, known, rules, key, given[key])
        for key, value in list(leaves(config)):
            if rule := rules.get(key):
                put(config, key, rule.check(key, value))
        for group in OWN:
            check_target(group, config[group]["_target_"], config["trust"])
    except RequestError as error:
        if str(error).split(":")[0].split("=")[0] in given:
            raise
        raise FolderError(f"{source}: refused: {error}") from error
    except (KeyError, TypeError) as error:
        raise FolderError(f"{source}: damaged, it lacks {error}.") from error
    return config


def check_shape(config: dict[str, Any], rules: dict[str, Rule], choices: dict[str, str]) -> None:
    """Raise RequestError unless `config` has every key that has a rule, and no other where mcls ships the file."""
    known = [key for key, _ in leaves(config)]
    parents = {key.rpartition(".")[0] for key in rules}
    for key in rules:
        if key not in known and key not in parents and not any(other.startswith(f"{key}.") for other in known):
            raise RequestError(f"{key}: missing. Was it written by another version of mcls?")
    own = {group for group in choices if f"{group}._target_" not in rules and group in OWN}
    for key in known:
        if key not in rules and key.split(".")[0] not in own:
            raise RequestError(f"{key}: no such key.")


def untrained(node: dict[str, Any], trust: Sequence[str]) -> dict[str, Any]:
    """The `node` of a model whose weights come from a checkpoint: without files to read or weights to download."""
    parameters = inspect.signature(resolve("model", node["_target_"], trust)).parameters
    kept = {key: value for key, value in node.items() if key not in WEIGHTS}
    return kept | {name: None for name in WEIGHTS if name in parameters}


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
    if key not in (*LENGTH, *HARMLESS) and value != known[key]:
        raise RequestError(
            f"{key}: {show(known[key])} -> {show(value)} would change what was trained. Begin a new run: mcls train."
        )
    put(config, key, rules[key].check(key, value) if key in rules else value)


def check_length(epochs: int, done: int) -> None:
    """Raise RequestError for `epochs` in all where more are done."""
    if epochs < done:
        raise RequestError(f"trainer.epochs: {done} are done, {epochs} would take some back. Give {done} or more.")


def shipped_rules(choices: dict[str, str]) -> dict[str, Rule]:
    """The rules of mcls's own files for these choices; a file that mcls does not ship has none, but for a trainer's."""
    root = Path(str(files(CONFIGS)))
    found = dict(read_rules(root / "train.yaml"))
    shipped = {path.relative_to(root).with_suffix("").as_posix(): path for path in root.glob("*/*.yaml")}
    for group, choice in {"trainer": "default", **choices}.items():
        place = f"{group}/{choice}"
        if group == "trainer" and place not in shipped:
            place = "trainer/default"
        if group != "experiment" and place in shipped:
            found |= {f"{group}.{key}": rule for key, rule in read_rules(shipped[place]).items()}
    return found
