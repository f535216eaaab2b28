"""The configuration of a finished or broken-off run, read back from its folder as data and checked like a fresh one."""

import inspect
import logging
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType

from mcls.config.instantiate import OWN, check_target, resolve
from mcls.config.overrides import as_plain, shell_quoted, suggestion
from mcls.config.schema import Constraint, inherited, leaves, put, read_constraints, yaml_text
from mcls.config.validate import CONFIGS, check_fold
from mcls.errors import FolderError, RequestError
from mcls.runs.folder import RunFolder, read_json, read_yaml
from mcls.runs.renamed import SCHEMA, rename, today

log = logging.getLogger("mcls")

# schema number: defaults that folders of it and older ones had, where today's would do something else
THEN: dict[int, dict[str, Any]] = {0: {"dataset.bits": 16, "sweep.test": "all"}, 1: {"trainer.cuda_graph": False}}

ELSEWHERE = ("dataset.root", "dataset.path", "dataset.download")  # where the data are; what they are is looked at later
# how val is cut from train, which leaves the test set as it is
VAL = ("dataset.val_fraction", "dataset.val_seed", "dataset.folds", "dataset.fold")
EXTENDABLE_KEYS = (
    "trainer.epochs",
    "trainer.patience",
    "trainer.max_steps",
    "trainer.max_minutes",
)  # how long is trained; not to less than has been
# keys that do not change what is trained
RESUMABLE_KEYS = (
    "trainer.log_every_steps",
    "trainer.checkpoint_every_seconds",
    "trainer.checkpoint_every_steps",
    "trainer.timeout_seconds",
    "trainer.workers",
    "trainer.devices",
    "trainer.oom",
    "trainer.data_on_device",
    "trainer.figures",
    "dataset.root",
    "dataset.path",
    "dataset.test_path",
    "dataset.download",
    "cache",
    "trust",
    "tags",
    "note",
    "sweep.test",
    "sweep.max_jobs",
    "sweep.name",
    "sweep.zip",
)

# arguments that name pretrained weights
WEIGHT_ARGUMENTS = ("weights", "weights_backbone", "pretrained", "pretrained_backbone")


def saved_config(folder: RunFolder, changes: Sequence[str] = ()) -> dict[str, Any]:
    """The configuration of the run in `folder`, with `changes` (`key=value`) that do not change what is trained.

    The folder's own list of trusted packages counts for nothing; `trust=[...]` among the changes does. Nor does it
    decide that something is downloaded; `dataset.download=true` among the changes does.

    Raises FolderError when config.yaml is damaged or refused, RequestError for a change that is not allowed.
    """
    return check_saved(read_yaml(folder.config), read_json(folder.about).get("choices"), changes, folder.config)


def saved_model(folder: RunFolder, changes: Sequence[str] = ()) -> dict[str, Any]:
    """Like `saved_config`, of the model alone: what else config.yaml says may be damaged or of another version.

    The other parts of the configuration that comes back are mcls's defaults.
    """
    stored, about = read_yaml(folder.config), read_json(folder.about)
    chosen = (about.get("choices") or {}).get("model")
    if not isinstance(chosen, str) or not isinstance(stored.get("model"), dict):
        raise FolderError(f"{folder.config}: damaged, it does not say what the model is.")
    main = yaml.safe_load((Path(str(files(CONFIGS))) / "train.yaml").read_text("utf-8"))["defaults"]
    choices = {key: str(value) for entry in main if isinstance(entry, dict) for key, value in entry.items()}
    choices = {group: choice for group, choice in choices.items() if group in OWN} | {"model": chosen}
    config: dict[str, Any] = {group: {} for group in (*OWN, "trainer")}
    for key, value in shipped_defaults(choices).items():
        group, _, name = key.rpartition(".")
        (config.setdefault(group, {}) if group else config)[name] = value
    config |= {key: stored[key] for key in ("schema", "precision", "model", "evaluate") if key in stored}
    config = check_saved(config, choices, changes, folder.config)
    dataset = stored.get("dataset")
    if isinstance(dataset, dict) and isinstance(dataset.get("delimiter"), str):  # of new files too, or else "auto"
        config["dataset"]["delimiter"] = dataset["delimiter"]
    return config


def check_saved(config: dict[str, Any], choices: Any, changes: Sequence[str], source: Path) -> dict[str, Any]:
    """`config`, read from file `source` of unknown origin, checked like a fresh one; see `saved_config`."""
    if not isinstance(choices, dict) or not all(isinstance(choice, str) for choice in choices.values()):
        raise FolderError(f"{source}: damaged, it does not record the choices.")
    choices = {"mix": "none", **choices}  # which older folders do not have
    config.setdefault("mix", {"_target_": None})
    rules = shipped_constraints(choices)
    given = {today(key, rules): value for key, value in map(assignment, changes)}
    try:
        bring_up_to_date(config, rules, choices, source)
        known = dict(leaves(config))
        config["trust"], config["cache"] = given.get("trust", []), None  # a folder decides about neither
        if "download" in config["dataset"]:
            config["dataset"]["download"] = False
        for key in given:
            check_replaced(key, known, rules, source)
            apply_change(config, known, rules, key, given[key])
        for key, value in list(leaves(config)):
            if rule := rules.get(key):
                put(config, key, rule.check(key, value))
        for group in OWN:
            check_target(group, config[group]["_target_"], config["trust"])
        check_fold(config["dataset"])
    except RequestError as error:
        if str(error).split(":")[0].split("=")[0] in given:
            raise
        raise FolderError(f"{source}: refused: {error}") from error
    except (KeyError, TypeError) as error:
        raise FolderError(f"{source}: damaged, it lacks {error}.") from error
    return config


def check_replaced(key: str, known: dict[str, Any], rules: dict[str, Constraint], source: Path) -> None:
    """Raise FolderError unless the value of `key` that a change replaces is allowed: it says what was trained."""
    try:
        if key in known and key in rules:
            rules[key].check(key, known[key])
    except RequestError as error:
        raise FolderError(f"{source}: refused: {error}") from error


def bring_up_to_date(
    config: dict[str, Any], rules: dict[str, Constraint], choices: dict[str, str], source: Path
) -> None:
    """Fill in the keys that `config`, written by another version of mcls, lacks, and drop those that are not known.

    Raises RequestError for an unknown key of the model or the data set: it would change what is computed.
    """
    schema = config.pop("schema", 0)
    if not isinstance(schema, int) or schema < 0:
        raise RequestError(f"schema: must be an int >= 0, got {yaml_text(schema)}.")
    if schema > SCHEMA:
        log.warning(f"{source}: written by a newer version of mcls, in schema {schema}; this one knows {SCHEMA}.")
    rename(config, rules)
    own = {group for group in choices if f"{group}._target_" not in rules and group in OWN}
    parents = {key.rpartition(".")[0] for key in rules}
    for key, value in list(leaves(config)):
        group = key.split(".")[0]
        if key in parents:
            raise RequestError(f"{key}: must be a mapping with keys, got {yaml_text(value)}.")
        if key in rules or group in own:
            continue
        below = any(key.startswith(f"{rule}.") for rule in rules if rule not in parents)
        if below or group in ("model", "dataset") or group not in parents:
            raise RequestError(f"{key}: no such key.")
        log.warning(f"{source}: {key} is not known to this version of mcls, ignored.")
        take_away(config, key)
    then = {
        key: value
        for version in sorted(THEN, reverse=True)
        if version >= schema
        for key, value in THEN[version].items()
    }
    for key, value in shipped_defaults(choices).items():
        group, _, name = key.rpartition(".")
        own_file = group in ("sweep", "evaluate")  # of train.yaml, in every run since it is there
        node = config.setdefault(group, {}) if own_file else config[group] if group else config
        if name != "_target_":
            node.setdefault(name, then.get(key, value))


def take_away(node: dict[str, Any], key: str) -> None:
    """Drop a dotted key of a nested dictionary."""
    *parents, last = key.split(".")
    for parent in parents:
        node = node[parent]
    del node[last]


def without_pretrained(node: dict[str, Any], trust: Sequence[str]) -> dict[str, Any]:
    """The `node` of a model whose weights come from a checkpoint: without files to read or weights to download."""
    parameters = inspect.signature(resolve("model", node["_target_"], trust)).parameters
    kept = {key: value for key, value in node.items() if key not in WEIGHT_ARGUMENTS}
    return kept | {name: None for name in WEIGHT_ARGUMENTS if name in parameters}


def assignment(text: str) -> tuple[str, Any]:
    """`key=value` as a key and a value, by the grammar of `mcls train`."""
    try:
        override = OverridesParser.create().parse_override(text)
    except Exception as error:  # Hydra's parser leaks many kinds for input that is no override
        hint = f" If it is a text, type {shell_quoted(text)}" if "=" in text else ""
        raise RequestError(f"{text}: not of the form key=value.{hint}") from error
    if override.type is not OverrideType.CHANGE or override.is_sweep_override():
        raise RequestError(f"{text}: a run has one value for each key. Write key=value.")
    return override.key_or_group, as_plain(override.value())


def apply_change(
    config: dict[str, Any], known: dict[str, Any], rules: dict[str, Constraint], key: str, value: Any
) -> None:
    """Change one key of `config`, if that is allowed. Raises RequestError."""
    if key not in known:
        raise RequestError(f"{key}: no such key. {suggestion(key, list(known))}")
    if key not in (*EXTENDABLE_KEYS, *RESUMABLE_KEYS) and value != known[key]:
        raise RequestError(
            f"{key}: {yaml_text(known[key])} -> {yaml_text(value)} "
            f"would change what was trained. Begin a new run: mcls train."
        )
    put(config, key, rules[key].check(key, value) if key in rules else value)


def check_length(epochs: int, done: int) -> None:
    """Raise RequestError for `epochs` in all where more are done."""
    if epochs < done:
        raise RequestError(f"trainer.epochs: {done} are done, {epochs} would remove some. Give {done} or more.")


def shipped_files(choices: dict[str, str]) -> dict[str, Path]:
    """mcls's own files for these choices, by prefix of their keys; a trainer's own file counts as default."""
    root = Path(str(files(CONFIGS)))
    used = {"": root / "train.yaml"}
    shipped = {path.relative_to(root).with_suffix("").as_posix(): path for path in root.glob("*/*.yaml")}
    for group, choice in {"trainer": "default", **choices}.items():
        name = f"{group}/{choice}"
        if group == "trainer" and name not in shipped:
            name = "trainer/default"
        if group != "experiment" and name in shipped:
            used[f"{group}."] = shipped[name]
    return used


def shipped_constraints(choices: dict[str, str]) -> dict[str, Constraint]:
    """The rules of mcls's own files for these choices; a file that mcls does not ship has none, but for a trainer's."""
    return {
        f"{prefix}{key}": rule
        for prefix, path in shipped_files(choices).items()
        for key, rule in read_constraints(path).items()
    }


def shipped_defaults(choices: dict[str, str]) -> dict[str, Any]:
    """The values in those files, by dotted key."""
    defaults: dict[str, Any] = {}
    for prefix, path in shipped_files(choices).items():
        base = yaml.safe_load(path.read_text("utf-8")) or {}
        for file in [*inherited(path, base.get("defaults") or [], [path.parent]), path]:
            node = yaml.safe_load(file.read_text("utf-8")) or {}
            defaults |= {
                prefix + key: value for key, value in leaves(node) if key.split(".")[0] not in ("defaults", "hydra")
            }
    return defaults


def check_same_data(differ: dict[str, tuple[Any, Any]], split: str) -> None:
    """Raise RequestError when the keys that differ make other data, or another cut where it matters to `split`."""
    free = ELSEWHERE + VAL if split == "test" else ELSEWHERE
    other = [key for key in differ if key.startswith("dataset.") and key not in free]
    if other:
        first, second = map(yaml_text, differ[other[0]])
        raise RequestError(f"{other[0]}: {first} and {second}. Runs on different data can't be compared.")
