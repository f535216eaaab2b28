"""Types and ranges of keys: every kind of rule, and every key of configs/ at and around each of its limits."""

import math
import operator
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from mcls.config.schema import Constraint, describe_constraint, read_constraints, yaml_text
from mcls.errors import RequestError

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name != "experiment")
RECIPES = sorted((CONFIGS / "experiment").glob("*.yaml"))
OPERATORS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
NAN, INF = math.nan, math.inf


def accepts(rule: str, value: Any) -> bool:
    try:
        Constraint(rule).check("key", value)
    except RequestError:
        return False
    return True


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        ("int", [0, -3, 20.0, 1e3, 10**400], [True, False, 1.5, "1", None, NAN, INF, [], {}]),
        ("int > 0", [1, 10**12], [0, -1, 0.5]),
        ("int >= 0 <= 4294967295", [0, 4294967295], [-1, 4294967296]),
        ("float", [0, -1.5, 1e300], [True, "0.1", None, NAN, INF, -INF, [], {}]),
        ("float > 0", [5e-324, 1, 1e308], [0, 0.0, -0.0, -1e-9, NAN, INF]),
        ("float >= 0 < 1", [0, 0.0, 0.999999], [1, 1.0, -1e-12]),
        ("float >= 0 <= 1", [0, 1, 0.5], [1.0000001, -0.1]),
        ("float >= -1.5", [-1.5, 0], [-1.6]),
        ("bool", [True, False], [0, 1, "true", None, 1.0]),
        ("text", ["", "x", "1", "a\nb", 1], [1.5, None, True, ["x"], {}]),
        ("list of int > 0", [[], [1], [3, 4.0]], [1, [0], [1, -1], [True], ["a"], None, [None], [[1]], "12"]),
        ("list of float >= 0 < 1", [[0.9, 0], [0]], [[1], [0.5, NAN], {}]),
        ("pair of float >= 0 < 1", [[0.9, 0]], [[], [0.9], [0.9, 1], [0.9, 0.9, 0.9], 0.9, None]),
        ("list of text", [[], ["a"], [1]], ["a", [1.5], [None]]),
        ("int > 0 | null", [1, None], [0, "null", False, []]),
        ("int > 0 | full", [1, "full"], ["Full", "", 0, True, None]),
        ("auto | true | false", ["auto", True, False], ["true", "on", 1, 0, None]),
        ("auto | cpu | cuda | cuda:N", ["auto", "cuda", "cuda:0", "cuda:17"], ["gpu", "cuda:", "cuda:x", "cuda:1 ", 0]),
        ("text | null", ["", None, 0], [0.5, False]),
        ("anything", [None, 1, NAN, [], {}], []),
    ],
)
def test_kinds(rule: str, good: list[Any], bad: list[Any]) -> None:
    assert [value for value in good if not accepts(rule, value)] == []
    assert [value for value in bad if accepts(rule, value)] == []


def test_values_are_given_back_in_their_own_type() -> None:
    cases: list[tuple[Any, str, Any]] = [
        (1e3, "int", 1000),
        (20.0, "int > 0", 20),
        (1, "float", 1.0),
        ([3.0], "list of int", [3]),
        ([1], "list of float", [1.0]),
        ("full", "int > 0 | full", "full"),
        (None, "int | null", None),
    ]
    for value, rule, wanted in cases:
        found = Constraint(rule).check("key", value)
        assert found == wanted
        assert type(found) is type(wanted)
        if isinstance(wanted, list):
            assert [type(item) for item in found] == [type(item) for item in wanted]


def test_messages() -> None:
    with pytest.raises(RequestError, match=r"^optimizer\.lr: must be float > 0, got -1\.$"):
        Constraint("float > 0").check("optimizer.lr", -1)
    with pytest.raises(RequestError, match=r"^device: must be auto, cpu, cuda or cuda:N, got 'gpu'\.$"):
        Constraint("auto | cpu | cuda | cuda:N").check("device", "gpu")
    assert describe_constraint("int") == "int"
    assert describe_constraint("int > 0 | full | null") == "int > 0, full or null"
    assert [yaml_text(value) for value in (None, True, False, 1.5, "a", [1])] == [
        "null",
        "true",
        "false",
        "1.5",
        "'a'",
        "[1]",
    ]


def leaves(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def keys_of(path: Path) -> dict[str, Any]:
    content = yaml.safe_load(path.read_text("utf-8"))
    return leaves({key: value for key, value in content.items() if key not in ("defaults", "hydra", "_target_")})


def test_every_file_is_seen() -> None:
    assert len(FILES) >= 35
    assert len(RECIPES) == 7


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_key_has_a_rule_a_comment_and_a_fitting_default(path: Path) -> None:
    rules = read_constraints(path)
    for key, value in keys_of(path).items():
        assert rules[key].text != "anything", key
        assert len(rules[key].help) > 4, key
        if not (isinstance(value, str) and value.startswith("${")):
            rules[key].check(key, value)
    assert set(rules) >= set(keys_of(path))


def test_an_explanation_goes_on_over_lines(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("# The file.\n# (int > 0) how many of them,\n# in all\nfirst: 1\n# (bool) whether\nsecond: true\n")
    assert read_constraints(path) == {
        "first": Constraint("int > 0", "how many of them, in all"),
        "second": Constraint("bool", "whether"),
    }


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_have_a_header_and_set_known_keys_within_their_rules(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text.startswith("# @package _global_\n# ")
    assert f"#   mcls train experiment={path.stem}\n" in text
    assert "#   expected: " in text
    content = yaml.safe_load(text)
    chosen = {"loss": "ce", "schedule": "constant", "trainer": "default", "augment": "none"}
    for entry in content["defaults"]:
        ((group, choice),) = entry.items()
        chosen[group.removeprefix("override /")] = choice
    rules = read_constraints(CONFIGS / "train.yaml") | {
        f"{group}.{key}": rule
        for group, choice in chosen.items()
        for key, rule in read_constraints(CONFIGS / group / f"{choice}.yaml").items()
    }
    found = leaves({key: value for key, value in content.items() if key != "defaults"})
    assert found
    for key, value in found.items():
        rules[key].check(key, value)


# kinds that each value fits, when no limit is looked at
POOL: list[tuple[Any, set[str]]] = [
    (None, {"null"}),
    (True, {"bool", "true"}),
    (False, {"bool", "false"}),
    ("no such word", {"text"}),
    ({}, set()),
    ({"a": 1}, set()),
    (NAN, set()),
    (INF, set()),
    (-INF, set()),
    ([None], set()),
    ([[]], set()),
]


def cases(rule: str) -> list[tuple[Any, bool]]:
    """Values and whether `rule` takes them: wrong types, and below, at and above every limit."""
    alternatives = [part.strip() for part in rule.replace("path", "text").split("|")]
    kinds = {part if part.startswith(("list", "pair")) else part.split()[0] for part in alternatives}
    found = [(value, bool(fits & kinds)) for value, fits in POOL]
    for part in alternatives:
        word = re.sub("^(list|pair) of ", "", part)
        listed, size = word != part, 2 if part.startswith("pair") else 1
        kind = word.split()[0]
        if listed:
            found += [([], size == 1), (0.5, False), ("x", False)]
        if kind not in ("int", "float"):
            found += [([word], True)] if listed and kind == "text" else []
            continue
        limits = [(sign, float(limit)) for sign, limit in re.findall(r"([<>]=?) (\S+)", word)]
        nudge = 1 if kind == "int" else 1e-6
        values = [limit + move for _, limit in limits for move in (-nudge, 0, nudge)] or [0.0, -1.0]
        for value in values:
            fits = all(OPERATORS[sign](value, limit) for sign, limit in limits)
            number = int(value) if kind == "int" else value
            found.append(([number] * size if listed else number, fits))
        if kind == "int":
            found.append(([1.5] if listed else 1.5, False))
    return found


def test_every_key_at_and_around_every_limit() -> None:
    keys = seen = 0
    for path in FILES:
        rules = read_constraints(path)
        for key, rule in rules.items():
            if rule.text == "anything":
                assert key == "_target_" or any(other.startswith(f"{key}.") for other in rules), key
                continue
            keys += 1
            for value, fits in cases(rule.text):
                assert accepts(rule.text, value) is fits, (path.name, key, rule.text, value)
                seen += 1
    assert keys >= 100
    assert seen > 1000


def test_a_debug_trainer_inherits_the_rules_it_does_not_state() -> None:
    assert read_constraints(CONFIGS / "trainer" / "debug.yaml") == read_constraints(
        CONFIGS / "trainer" / "default.yaml"
    )


def test_rules_of_nested_keys_and_of_keys_without_one(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "# (int > 0) one\na: 1\nb:\n  # (bool) two\n  c: true\n  d: 2\n# words\ne: 3\n\n# (int) lost\n\nf: 4\n"
    )
    rules = read_constraints(file)
    assert (rules["a"].text, rules["a"].help) == ("int > 0", "one")
    assert rules["b.c"].text == "bool"
    assert [rules[key].text for key in ("b.d", "e", "f")] == ["anything"] * 3
