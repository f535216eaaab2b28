"""Names of older versions and their current names: of keys, values and `_target_`s.

Run folders, configuration files and command lines with the old names keep working. A name that changes is added here,
and stays.
"""

import re
from collections.abc import Container
from typing import Any

SCHEMA = 1  # number of the format of the configurations written today; raised when an absent key means something else

KEYS = {
    "trainer.checkpoint_every": "trainer.checkpoint_every_seconds",
    "trainer.checkpoint_steps": "trainer.checkpoint_every_steps",
    "trainer.log_every": "trainer.log_every_steps",
    "trainer.test_every_epoch": "trainer.evaluate_test_each_epoch",
    "trainer.balanced": "trainer.class_balanced_sampling",
    "trainer.resident": "trainer.data_on_device",
    "trainer.clip_norm": "trainer.grad_clip_norm",
    "schedule.warmup": "schedule.warmup_fraction",
    "schedule.initial": "schedule.start_factor",
    "schedule.final": "schedule.end_factor",
    "dataset.text_columns": "dataset.categorical_columns",
    "dataset.unseen": "dataset.handle_unknown",
    "dataset.missing": "dataset.missing_values_strategy",
    "dataset.group_column": "dataset.group",
    "dataset.test_size": "dataset.test_fraction",  # of blobs
    "dataset.test_random_state": "dataset.test_seed",
}
# (key or group, old value): new value
VALUES = {("precision", "fp32_fast"): "fp32_medium", ("model", "small_resnet"): "small-resnet"}
TARGETS = {
    "mcls.data.datasets.blobs": "mcls.datasets.blobs",
    "mcls.data.datasets.mnist": "mcls.datasets.mnist",
    "mcls.data.datasets.fashion_mnist": "mcls.datasets.fashion_mnist",
    "mcls.data.datasets.cifar10": "mcls.datasets.cifar10",
    "mcls.data.tabular.csv_file": "mcls.datasets.csv_file",
    "mcls.data.image_folder.image_folder": "mcls.datasets.image_folder",
    "mcls.models.mlp.MLP": "mcls.models.MLP",
    "mcls.models.resnet.resnet18_finetune": "mcls.models.resnet18_finetune",
    "mcls.models.resnet.resnet18": "mcls.models.resnet18",
    "mcls.models.small.SmallResNet": "mcls.models.SmallResNet",
    "mcls.optim.constant": "mcls.schedules.constant",
    "mcls.optim.cosine": "mcls.schedules.cosine",
    "mcls.optim.one_cycle": "mcls.schedules.one_cycle",
    "mcls.optim.step_decay": "mcls.schedules.step_decay",
    "mcls.data.augment.CropFlip": "mcls.augmentations.CropFlip",
}


def rename(config: dict[str, Any], known: Container[str], typed: Container[str] = ()) -> dict[str, str]:
    """Give the keys, values and `_target_`s in `config`, in place, the names of today. Returns old names and new ones.

    Args:
        config: of a run; dictionaries of groups in a dictionary.
        known: the keys of today; one that is among them keeps its name, for another group of choices may have it.
        typed: keys of today whose value the old name must not change, as those on the command line.
    """
    renames = {}
    for old, new in KEYS.items():
        group, key = old.split(".")
        node = config.get(group)
        if isinstance(node, dict) and key in node and today(old, known) == new:
            kept = {name: value for name, value in node.items() if name != key or new not in typed}
            config[group] = {new.split(".")[1] if name == key else name: value for name, value in kept.items()}
            renames[old] = new
    for (key, value), new in VALUES.items():
        if config.get(key) == value:
            config[key] = new
            renames[f"{key}={value}"] = f"{key}={new}"
    for node in config.values():
        if isinstance(node, dict) and isinstance(node.get("_target_"), str):
            node["_target_"] = target(node["_target_"])
    return renames


def today(key: str, known: Container[str]) -> str:
    """The name of today of `key`, unless it is itself one of the keys that are `known`."""
    new = KEYS.get(key, key)
    return new if key not in known and new in known else key


def rename_line(line: str, key: str, new: str) -> str:
    """The override `line` of `key` for the key `new`, and with the values of today."""
    for (where, old), value in VALUES.items():
        line = re.sub(rf"\b{old}\b", value, line) if key == where else line
    return line.replace(key, new, 1)


def target(name: str) -> str:
    """The `_target_` that `name` is called today."""
    return TARGETS.get(name, name)


def value_of(key: str, value: Any) -> Any:
    """The value of `key` that `value` is called today."""
    return VALUES.get((key, value), value) if isinstance(value, str) else value


def rename_about(about: dict[str, Any]) -> dict[str, Any]:
    """What a run.json says, checked, under the names of today."""
    named = {key: value_of(key, value) for key, value in about.items()}
    if "choices" in about:
        named["choices"] = {group: value_of(group, choice) for group, choice in about["choices"].items()}
    if "hyperparameters" in about:
        named["hyperparameters"] = {
            KEYS.get(key, key): value_of(key, value) for key, value in about["hyperparameters"].items()
        }
    return named
