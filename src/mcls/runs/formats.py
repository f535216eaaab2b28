"""The formats of the files of a run folder, described as data, and the check of what is read back against them.

A shape is text, kinds with `|` between them; a class; a list with one shape, for lists and tuples of it; a tuple of
shapes, one of which has to fit; or a dictionary from keys to shapes: a key that ends in ? may be missing, `*` stands
for all others. Keys that a shape does not name may be there: a later version has written them.
"""

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mcls.errors import FolderError

MAX_DEPTH = 20  # of nested values
WHOLE = 1 << 53  # above are no counts


def encodable(value: Any) -> bool:
    """Whether a text can be written to a file, which half a surrogate pair can't."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


KIND_CHECKS: dict[str, Callable[[Any], bool]] = {
    "text": lambda value: isinstance(value, str),
    "name": encodable,
    "count": lambda value: type(value) is int and 0 <= value < WHOLE,
    "float": lambda value: type(value) in (int, float) and abs(value) < 1e300,  # nan and inf are not
    "bool": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}
NUMBER_OR_NULL = {"*": "float|null"}
REPORT = {
    **dict.fromkeys(("accuracy", "loss", "f1_macro", "ece"), "float"),
    "interval?": ["float"],
    "n": "count",
    "per_class": [{"class": "text", "precision": "float|null", "recall": "float|null", "f1": "float|null"}],
    "confusion": ([["count"]], {"*": ["count"]}),
}
FINGERPRINTS = {"fingerprints?": {"*": ("null", {"samples": "count", "classes": "text", "inputs": "text"})}}
RESULT: dict[str, Any] = {
    "status": "text",
    **{f"{key}?": "text|null" for key in ("reason", "ended_by")},
    **{f"{key}?": "count" for key in ("test_openings", "epochs", "best_epoch", "steps")},
    **{f"{key}?": "float" for key in ("seconds", "total_seconds")},
    **{f"{key}?": ("null", {"accuracy?": "float|null"}) for key in ("val", "test")},
    **FINGERPRINTS,
    "weights_sha256?": "text",
    "val_correct?": "text",
}
FINISHED = {
    **dict.fromkeys(("test_openings", "epochs", "best_epoch"), "count"),
    "total_seconds": "float",
    "val": ("null", REPORT),
    "test": ("null", REPORT),  # of a sweep's job that was not chosen
}
ABOUT = {
    **FINGERPRINTS,
    **{f"{key}?": "text" for key in ("command", "started", "device", "device_name", "precision")},
    **{f"{key}?": ["text"] for key in ("overrides", "warnings")},
    "choices?": {"*": "text"},
    "seed?": "count",
    "channels_last?": "bool",
    "environment?": {"threads?": "count", "packages?": {"*": "text|null"}, "*": "text|float|bool|null"},
    "hyperparameters?": {"*": "text|float|bool|null"},
}
OPENING = {"at": "text", "by": "text", "times": "count"}  # a line of test_openings.jsonl
EPOCH = {"epoch": "count", "*": ("float|null", NUMBER_OR_NULL)}  # a line of metrics.jsonl
FILES: dict[str, Any] = {
    "run.json": ABOUT,
    "result.json": RESULT,
    "evaluation.json": {
        "*": {"accuracy?": "float", "interval?": ["float"], "members?": [{"run": "text", "accuracy": "float"}]}
    },
    "sweep.json": {
        **{"command": "text", "fixed": ["text"], "jobs": [["text"]], "names?": ["text"]},
        "bases?": [{"choices": {"*": "text"}, "config": {"trainer": {"figures": "bool"}, "dataset": {}}}],
        "frozen?": [{"base": "count", "values": {}}],
        "search?": {
            "settings": (
                {"kind": "text", "rungs": "count", "keep": "float"},
                {"kind": "text", "trials": "count", "seed": "count", "pruner?": "text"},
            ),
            "lines": ["text"],
            "dimensions": [
                {
                    **{"key": "text", "log": "bool", "choices": ["text"]},
                    **dict.fromkeys(("low", "high", "step"), "float|null"),
                }
            ],
        },
    },
}
ENCODER = {
    **dict.fromkeys(("missing", "unseen"), "text"),
    **{f"{key}?": "name" for key in ("delimiter", "target")},
    **{key: ["name"] for key in ("columns", "missing_values")},
    "categories": [["name"]],
    **{key: ["float"] for key in ("means", "stds")},
}
DATA = {
    "classes": ["name"],
    "input_shape": ["count"],
    "samples?": ["count"],
    "bits?": "count",
    "resize?": "text",
    "crop_fraction?": "float",
    "interpolation?": "text",
    "mean?": ["float"],
    "std?": ["float"],
    "encoder?": ENCODER,
}


def check(value: Any, shape: Any, path: Path) -> None:
    """Raise FolderError, naming the file `path` and the place in it, unless `value` has `shape`."""
    if wrong := mismatch(value, shape, ""):
        raise FolderError(f"{path}: damaged, {wrong}.")


def mismatch(value: Any, shape: Any, path: str) -> str:
    """The first difference between `value` and `shape`, with its `path`; empty if there is none."""
    if isinstance(shape, tuple):
        wrongs = [mismatch(value, other, path) for other in shape]
        return "" if "" in wrongs else wrongs[-1]
    if isinstance(shape, dict):
        return mapping(value, shape, path) if isinstance(value, dict) else said(value, "a mapping", path)
    if isinstance(shape, list):
        if not isinstance(value, list | tuple):
            return said(value, "a list", path)
        items = [min(value), max(value)] if set(map(type, value)) == {int} else value  # they speak for millions
        return next((wrong for item in items if (wrong := mismatch(item, shape[0], f"{path}[]"))), "")
    if isinstance(shape, type):
        return "" if isinstance(value, shape) else said(value, f"a {shape.__name__.lower()}", path)
    for kind in kinds_of(shape):
        if KIND_CHECKS[kind](value):
            return ""
    return said(value, shape, path)


@functools.cache
def kinds_of(shape: str) -> list[str]:
    """The kinds of a shape that is text; each is looked up for many values."""
    return shape.split("|")


def mapping(value: dict[Any, Any], shape: dict[str, Any], path: str) -> str:
    """`mismatch` of a dictionary."""
    named = {key.rstrip("?") for key in shape}
    for key, item in shape.items():
        name = key.rstrip("?")
        if key != "*" and name not in value and name == key:
            return f"it lacks {f'{path}.{name}'.lstrip('.')}"
        for name_of in [other for other in value if other not in named] if key == "*" else [name] * (name in value):
            if wrong := mismatch(value[name_of], item, f"{path}.{name_of!s:.40}"):
                return wrong
    return ""


def said(value: Any, wanted: str, path: str) -> str:
    """What was expected and what was found, in one line."""
    scalar = value is None or isinstance(value, bool | int | float | str)
    got = f"{value!r:.40}" if scalar and not (isinstance(value, int) and abs(value) > WHOLE) else type(value).__name__
    return f"{path.lstrip('.') or 'all of it'} must be {wanted.replace('|', ' or ')}, got {got}"


def too_deep(value: Any, left: int = MAX_DEPTH) -> bool:
    """Whether lists and dictionaries in `value` are nested deeper than `left`."""
    items = value.values() if isinstance(value, dict) else value
    return left == 0 or any(too_deep(item, left - 1) for item in items if type(item) in (dict, list))


def check_data(data: Any, path: Path) -> None:
    """Raise FolderError unless `data`, of the checkpoint in `path`, says in itself consistently how samples look."""
    check(data, DATA, path)
    shape, mean, std = data["input_shape"], data.get("mean"), data.get("std")
    lengths = {len(values) for values in (mean, std) if values is not None}
    image = mean is not None and std is not None and len(shape) == 3 and min(std, default=0) > 0
    good = bool(shape) and min(shape) > 0 and 8 <= data.get("bits", 8) <= 16
    if not good or not data["classes"] or (lengths and not (image and lengths == {shape[0]})):
        raise FolderError(f"{path}: damaged, its classes, shape, mean and std are inconsistent.")
    check_encoder(data.get("encoder"), shape, path)


def check_encoder(encoder: Any, shape: Sequence[int], path: Path) -> None:
    """Raise FolderError unless `encoder` is None, or has all that `encode_table` uses and makes samples of `shape`."""
    if encoder is None:
        return
    check(encoder, ENCODER, path)
    names, texts, numbers = encoder["columns"], encoder["categories"], [*encoder["means"], *encoder["stds"]]
    fits = len(names) == len(texts) == len(encoder["means"]) == len(encoder["stds"])
    if not fits or tuple(shape) != (sum(len(row) or 1 for row in texts),) or max(map(abs, numbers)) >= 1e30:
        raise FolderError(f"{path}: refused, its description of the table's columns is inconsistent.")
