"""Types and ranges of keys, read from the comments of the YAML files that define them.

A key is preceded by a comment that begins with its rule in parentheses:

    # (float > 0) learning rate, before the schedule
    lr: 0.1

A rule is one or more alternatives separated by `|`. An alternative is `int`, `float`, `bool`, `text` or `path`, a text
whose `~` stands for the home folder; a number's may
be followed by limits (`> 0`, `<= 1`); `list of` makes it a list, `pair of` a list of two; anything else stands for
itself (`null`, `auto`).
"""

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import ge, gt, le, lt
from pathlib import Path
from typing import Any, TypeVar

import yaml

from mcls.errors import RequestError
from mcls.system.text import listed

KEY = re.compile(r"^( *)([A-Za-z_][\w-]*):")
CONSTRAINT = re.compile(r"^ *# \((.+?)\) (.+)$")
LIMIT = re.compile(r"(>=|<=|>|<) *(-?[\d.]+)")
LIMIT_CHECKS = {">": gt, ">=": ge, "<": lt, "<=": le}
Item = TypeVar("Item")
Result = TypeVar("Result")
LITERALS: dict[str, Any] = {"null": None, "true": True, "false": False}


@dataclass(frozen=True)
class Constraint:
    """What a key may be, and what it is for."""

    text: str = "anything"
    help: str = ""

    def check(self, key: str, value: Any) -> Any:
        """`value`, an integral float as the int that was asked for. Raises RequestError, naming `key`."""
        for alternative in self.text.split("|"):
            fits, converted = match(alternative.strip(), value)
            if fits:
                return converted
        raise RequestError(f"{key}: must be {describe_constraint(self.text)}, got {yaml_text(value)}.")


def gather(check: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """What `check` returns for each of `items`. Raises one RequestError with a line for each item that is refused."""
    results, errors = [], []
    for item in items:
        try:
            results.append(check(item))
        except RequestError as error:
            errors.append(str(error))
    if errors:
        raise RequestError("\n".join(dict.fromkeys(errors)))
    return results


def match(alternative: str, value: Any) -> tuple[bool, Any]:
    """Whether `value` fits one alternative of a rule, and the value to use."""
    if alternative.startswith(("list of ", "pair of ")):
        if not isinstance(value, list) or (alternative.startswith("pair") and len(value) != 2):
            return False, value
        parts = [match(alternative[len("list of ") :], item) for item in value]
        return all(fits for fits, _ in parts), [item for _, item in parts]
    kind = alternative.split()[0]
    if kind in ("int", "float"):
        number = as_number(value, kind)
        if number is None or not all(
            LIMIT_CHECKS[sign](number, float(limit)) for sign, limit in LIMIT.findall(alternative)
        ):
            return False, value
        return True, number
    if kind == "bool":
        return isinstance(value, bool), value
    if kind == "anything":
        return True, value
    if kind in ("text", "path"):
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)  # such as a column called 7
        home = kind == "path" and isinstance(value, str) and value.startswith("~")
        return isinstance(value, str), os.path.expanduser(value) if home else value  # noqa: PTH111, one of no user stays
    if kind in LITERALS:
        return value is LITERALS[kind], value
    if kind.endswith(":N"):
        return isinstance(value, str) and re.fullmatch(kind.replace("N", r"\d+"), value) is not None, value
    return value == kind, value


def as_number(value: Any, kind: str) -> int | float | None:
    """`value` as a finite number of `kind`, or None; 1e3 and 20.0 are integers, True is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if kind == "float":
        try:
            return float(value)
        except OverflowError:
            return None
    return int(value) if value == int(value) else None


def describe_constraint(text: str) -> str:
    """A rule in words."""
    return listed([part.strip() for part in text.split("|")])


def yaml_text(value: Any) -> str:
    """A value as YAML users write it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value) if isinstance(value, str) else str(value)


def leaves(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of a nested dictionary with its value; lists are values."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differing_keys(first: dict[str, Any], second: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys of two flat configurations with unequal values, None for a key that is not there."""
    keys = dict.fromkeys([*first, *second])
    return {key: (first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)}


def put(node: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key of a nested dictionary."""
    *parents, last = key.split(".")
    for parent in parents:
        node = node[parent]
    node[last] = value


def read_constraints(path: Path, roots: Sequence[Path] = ()) -> dict[str, Constraint]:
    """The rules in a YAML file, by dotted key; the files that it inherits from are read first.

    A key without a rule in its comment gets none: it is known, and takes anything.

    Args:
        path: the file.
        roots: folders of configuration files, first to last; without any, a file inherits from those beside it.
    """
    rules: dict[str, Constraint] = {}
    parents: list[tuple[int, str]] = []
    comment: list[str] = []
    text = path.read_text("utf-8")
    if "defaults:" in text:
        for base in inherited(path, (yaml.safe_load(text) or {}).get("defaults") or [], roots or [path.parent]):
            rules |= read_constraints(base, roots)
    for row, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#"):
            comment.append(line)
            continue
        if match := KEY.match(line):
            indent, name = len(match[1]), match[2]
            parents = [entry for entry in parents if entry[0] < indent] + [(indent, name)]
            key = ".".join(entry[1] for entry in parents)
            begin, rule = next(
                ((at, rule) for at, line in enumerate(comment) if (rule := CONSTRAINT.match(line))), (0, None)
            )
            if comment and comment[0].lstrip().startswith("# (") and not rule:
                raise RequestError(
                    f"{path}, line {row - len(comment)}: {comment[0].strip()!r} is no constraint. "
                    "Write the closing parenthesis and a description: # (float > 0) learning rate"
                )
            if rule:
                rest = [line.strip("# ") for line in comment[begin + 1 :]]
                rules[key] = Constraint(rule[1], " ".join([rule[2], *rest]))
            else:
                rules.setdefault(key, Constraint())
        comment = []
    return {key: rule for key, rule in rules.items() if key.split(".")[0] not in ("defaults", "hydra")}


def read_defaults(path: Path, roots: Sequence[Path]) -> dict[str, Any]:
    """The keys of a YAML file as they are written, over those of the files that it inherits from."""
    own: dict[str, Any] = yaml.safe_load(path.read_text("utf-8")) or {}
    defaults_so_far: dict[str, Any] = {}
    for base in inherited(path, own.pop("defaults", None) or [], roots):
        defaults_so_far |= read_defaults(base, roots)
    return {**defaults_so_far, **own}


def inherited(path: Path, defaults: Sequence[Any], roots: Sequence[Path]) -> Iterator[Path]:
    """What a defaults list inherits from, such as `adam` or `/optimizer/adam@_here_`; not choices of groups."""
    group = next((path.parent.relative_to(root) for root in roots if path.is_relative_to(root)), Path())
    for entry in defaults:
        if isinstance(entry, str) and entry != "_self_":
            name = f"{entry.split('@')[0]}.yaml"
            places = [root / name[1:] if name.startswith("/") else root / group / name for root in roots]
            yield from [candidate for candidate in places if candidate.is_file()][:1]
