"""Lines of code of each package, without blank lines, comments and docstrings, held to a budget: python tests/size.py.

A budget is raised in the commit that needs it, with the reason.
"""

import ast
import io
import sys
import tokenize
from collections import Counter
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"
# package or module: most lines; one that is not named here may have 50, cli 100
BUDGETS = {
    "commands": 1860,
    "sweep": 1490,
    "inference": 1890,
    "training": 2465,
    "config": 1475,
    "report": 1075,
    "data": 2475,
    "runs": 1220,
    "metrics": 210,
    "models": 385,
    "losses": 80,
    "schedules": 30,
    "augmentations": 130,
    "mixing": 50,
    "ranks": 115,
    "system": 672,
    "significance": 40,
    "cli": 110,
}
BLANK = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def lines_of_code(text: str) -> int:
    """Lines of `text` that hold more than blanks, a comment or a docstring."""
    held: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in BLANK:
            held |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            first = node.body[0]
            held -= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return len(held)


def room(path: Path) -> str:
    """The package or module of a file below mcls/."""
    return path.parts[1].removesuffix(".py")


if __name__ == "__main__":
    sizes = {path.relative_to(SOURCE): lines_of_code(path.read_text("utf-8")) for path in SOURCE.rglob("*.py")}
    rooms = Counter[str]()
    for path, size in sizes.items():
        rooms[room(path)] += size
    print(", ".join(f"{name} {rooms[name]:,} of {BUDGETS[name]:,}" for name in BUDGETS))
    print(f"{sum(sizes.values()):,} lines of code in {len(sizes)} files")
    if over := [name for name in rooms if rooms[name] > BUDGETS.get(name, 50)]:
        sys.exit(f"over the budget: {', '.join(over)}. Simplify, or raise it in tests/size.py and say why.")
