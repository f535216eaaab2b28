"""The part of docs/configuration.md that is made from the comments in configs/: each key with its type and default.

To write it anew, below the part that is written by hand:

    python tests/configuration_page.py --update
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from mcls.config.schema import CONSTRAINT, leaves, read_constraints

ROOT = Path(__file__).parents[1]
CONFIGS, PAGE = ROOT / "configs", ROOT / "docs" / "configuration.md"
MARK = "<!-- The rest is made by `python tests/configuration_page.py --update` from the comments in configs/. -->\n"
HEAD = ["| key | accepts | default | |", "| --- | --- | --- | --- |"]
LONGEST = 40  # letters of a default; a longer one is in the file alone


def remark(path: Path) -> str:
    """What a file says of itself: the comment before its first key, without that key's own."""
    lines: list[str] = []
    for line in path.read_text("utf-8").splitlines():
        if not line.startswith("#") or CONSTRAINT.match(line):
            break
        if not line.startswith(("# @package", "#   ")):
            lines.append(line.strip("# "))
    return " ".join(lines)


def code(text: str) -> str:
    """A cell of a table, set as code."""
    return f"`{text}`".replace("|", r"\|")


def default(value: Any, path: Path) -> str:
    """A default as it is typed, or a pointer to its file."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
    return code(text) if len(text) <= LONGEST else f"see [{path.name}](../{path.relative_to(ROOT).as_posix()})"


def rows(path: Path, prefix: str) -> list[str]:
    """The table of the keys that a file has beside those it inherits; empty if there are none."""
    values = yaml.safe_load(path.read_text("utf-8")) or {}
    keys = [(key, value) for key, value in leaves(values) if key.split(".")[0] not in ("defaults", "hydra", "_target_")]
    rules = read_constraints(path)
    found = [
        f"| `{prefix}{key}` | {code(rules[key].text)} | {default(value, path)} | {rules[key].help} |"
        for key, value in keys
    ]
    return [*HEAD, *found, ""] if found else []


def group_pages(group: str, chosen: str | None) -> Iterator[str]:
    """The choices of a group, each with its own keys; `chosen` is the default."""
    yield from [f"### {group}", ""]
    for path in sorted((CONFIGS / group).glob("*.yaml")):
        if group == "experiment":
            yield f"- `experiment={path.stem}`: {remark(path)}"
            continue
        bases = (yaml.safe_load(path.read_text("utf-8")) or {}).get("defaults", [])
        also = [f"Also the keys of `{group}={base}`." for base in bases if base != "_self_"]
        title = f"**`{group}={path.stem}`**{' (default)' if path.stem == chosen else ''}"
        yield from [" ".join([title, *filter(None, [remark(path)]), *also]), "", *rows(path, f"{group}.")]
    yield ""


def reference() -> str:
    """The keys of train.yaml, then those of each choice of each group, in the order of train.yaml."""
    lines = ["## Keys", "", "### Every run", "", *rows(CONFIGS / "train.yaml", "")]
    for entry in yaml.safe_load((CONFIGS / "train.yaml").read_text("utf-8"))["defaults"]:
        if isinstance(entry, dict) and not next(iter(entry)).startswith("override"):
            ((group, chosen),) = entry.items()
            lines += group_pages(group, chosen)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def page() -> str:
    """The whole page: the hand-written part as it is, then the reference."""
    return PAGE.read_text("utf-8").partition(MARK)[0] + MARK + "\n" + reference()


if __name__ == "__main__":
    if sys.argv[1:] != ["--update"]:
        sys.exit("python tests/configuration_page.py --update")
    PAGE.write_text(page(), "utf-8")
