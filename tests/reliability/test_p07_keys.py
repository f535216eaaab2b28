"""P7: every key has a type, a range and a sentence; each wrong value and each neighbour is refused by name."""

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mcls.config.compose import checker
from mcls.config.schema import LIMIT, Constraint, read_constraints
from mcls.errors import RequestError

ROOT = Path(__file__).parents[2] / "configs"
FILES = [ROOT / "train.yaml", *sorted(path for path in ROOT.glob("*/*.yaml") if path.parent.name != "experiment")]
Case = tuple[Path, str, Constraint]
LISTED = re.compile("^(list|pair) of ")


def keys() -> Iterator[Case]:
    """Every key of every file."""
    for path in FILES:
        rules = read_constraints(path)
        for key, rule in rules.items():
            if key != "_target_" and not any(other.startswith(f"{key}.") for other in rules):
                yield path, key if path.parent == ROOT else f"{path.parent.name}.{key}", rule


ALL = list(keys())


def words(rule: Constraint) -> list[str]:
    """Its alternatives."""
    return [part.strip() for part in rule.text.split("|")]


def wrong_values(rule: Constraint) -> Iterator[Any]:
    """Values that are of no allowed type, or beyond the limits."""
    kinds = {LISTED.sub("", part).split()[0] for part in words(rule)}
    numeric = kinds & {"int", "float"}
    listed = any(LISTED.match(part) for part in words(rule))
    if not kinds & {"text", "path"} or listed:
        yield "certainly not one of these"
    yield {"a": 1}
    if not listed:
        yield [1]
    if "null" not in kinds:
        yield None
    if "bool" not in kinds and "true" not in kinds:
        yield True
    if numeric:
        size = 2 if any(part.startswith("pair of ") for part in words(rule)) else 1
        wrap = (lambda value: [value] * size) if listed else (lambda value: value)
        yield from (wrap(value) for value in (math.nan, math.inf, -math.inf))
        if "float" not in kinds:
            yield wrap(1.5)
        for sign, text in LIMIT.findall(rule.text):
            limit = float(text)
            step = 1 if "int" in kinds else 1e-6 + abs(limit) * 1e-6
            beyond = {">": limit, ">=": limit - step, "<": limit, "<=": limit + step}[sign]
            yield wrap(int(beyond) if "int" in kinds else beyond)


def boundaries(rule: Constraint) -> Iterator[Any]:
    """Values that are just allowed."""
    for part in words(rule):
        listed = LISTED.match(part)
        kind = LISTED.sub("", part).split()[0]
        if kind not in ("int", "float"):
            continue
        for sign, text in LIMIT.findall(part):
            step = 1 if kind == "int" else 1e-6
            value = float(text) + {">": step, ">=": 0, "<": -step, "<=": 0}[sign]
            value = int(value) if kind == "int" else value
            yield [value] * (2 if listed[1] == "pair" else 1) if listed else value


def test_there_are_keys() -> None:
    assert len(ALL) > 60 and len(FILES) > 20


def test_every_key_has_a_rule_and_a_sentence() -> None:
    bare = [key for _, key, rule in ALL if not rule.help or rule.text == "anything"]
    assert not bare


def test_every_number_has_a_limit_or_may_be_any() -> None:
    """A number without a limit takes everything finite; these do, and each is meant to."""
    free = {
        key
        for _, key, rule in ALL
        if {"int", "float"} & {w.split()[0] for w in words(rule)} and not LIMIT.search(rule.text)
    }
    assert free <= {"dataset.mean"}, free


def test_every_value_that_is_shipped_is_allowed() -> None:
    for path in FILES:
        values = yaml.safe_load(path.read_text()) or {}
        for key, rule in read_constraints(path).items():
            if key != "_target_" and key in values and "${" not in str(values[key]):
                rule.check(key, values[key])


def test_wrong_values_and_boundaries(count: Callable[[str], None]) -> None:
    refused = allowed = 0
    for _, key, rule in ALL:
        cases = list(wrong_values(rule))
        assert len(cases) >= 2, key
        for value in cases:
            with pytest.raises(RequestError, match=f"^{re.escape(key)}: must be "):
                rule.check(key, value)
            refused += 1
        for value in boundaries(rule):
            rule.check(key, value)
            allowed += 1
    count(f"{len(ALL)} keys: {refused} wrong values refused by name, {allowed} boundaries allowed")


def test_neighbours_and_the_command_line(count: Callable[[str], None]) -> None:
    """A letter dropped, doubled or swapped in the key: the true one is named. And one wrong value through all of it."""
    asked = 0
    with checker() as check:
        for path, key, rule in ALL:
            choose = [] if path.parent == ROOT else [f"{path.parent.name}={path.stem}"]
            *before, name = key.split(".")
            near = [name[:1] + name[2:], name + name[-1], name[:1] + name[1:3][::-1] + name[3:]]
            for word in [near[asked % 3]]:
                typed = ".".join([*before, word])
                if word in ("", name) or any(typed == other for _, other, _ in ALL):
                    continue
                with pytest.raises(RequestError) as caught:
                    check.check([*choose, f"{typed}=1"], False)
                assert str(caught.value).startswith(f"{typed}: no such key.") and f"Did you mean {key}?" in str(
                    caught.value
                )
            value = next(value for value in wrong_values(rule) if not isinstance(value, dict))
            text = {None: "null", True: "true"}.get(value, str(value)) if not isinstance(value, list) else "[1]"
            with pytest.raises(RequestError, match=f"^{re.escape(key)}: must be "):
                check.check([*choose, f"{key}={text}"], False)
            asked += 1
    count(f"{asked} neighbours answered with the true key")


def test_control_a_key_without_a_rule_takes_anything(tmp_path: Path) -> None:
    """What Hydra does: the shape of the file, no types. Such a key must be found by the tests above."""
    path = tmp_path / "x.yaml"
    path.write_text("lr: 0.1\n")
    rule = read_constraints(path)["lr"]
    assert rule.check("lr", "abc") == "abc" and rule.text == "anything" and not rule.help
