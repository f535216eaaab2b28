"""Lines of code of the package, without blank lines, comments and docstrings: python tests/size.py."""

import ast
import io
import tokenize
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"
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


if __name__ == "__main__":
    sizes = {path.relative_to(SOURCE): lines_of_code(path.read_text("utf-8")) for path in SOURCE.rglob("*.py")}
    largest = max(sizes, key=lambda path: sizes[path])
    print(f"{sum(sizes.values()):,} lines of code in {len(sizes)} files; the largest, {largest}, has {sizes[largest]}")
