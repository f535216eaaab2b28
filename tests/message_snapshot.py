"""Every message that a user can see, read from the source into tests/messages.snap, which is reviewed as text.

One line for each: the module, the call, and the text with {...} for what is filled in. To write the file anew:

    python tests/message_snapshot.py --update
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from mcls import errors
from mcls.system.text import plural

SOURCE = Path(__file__).parents[1] / "src" / "mcls"
SNAPSHOT = Path(__file__).with_name("messages.snap")
ERRORS = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
CALLS = {
    "print",
    "say",
    "say_aside",
    "complain",
    "info",
    "warning",
    "error",
    "ArgumentParser",
    "Parser",
    "add_parser",
    "add_argument",
    "ArgumentTypeError",
    "HTTPException",
} | ERRORS
KEYWORDS = {"help", "description", "epilog"}


def filled(node: ast.AST) -> str:
    """What stands for an expression in a text: {...}, and of `plural(number, "epoch")` {...} epochs."""
    match node:
        case ast.Call(ast.Name("plural") | ast.Attribute(attr="plural"), [_, ast.Constant(str(noun))]):
            return plural(2, noun).replace("2", "{...}")
    return "{...}"


def texts(node: ast.AST) -> Iterator[str]:
    """The texts in an expression, in order, with {...} for what is filled in."""
    if isinstance(node, ast.JoinedStr):
        yield "".join(
            str(part.value) if isinstance(part, ast.Constant) else filled(part.value)
            for part in node.values
            if isinstance(part, ast.Constant | ast.FormattedValue)
        )
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            yield node.value
    elif isinstance(node, ast.BinOp | ast.IfExp | ast.BoolOp | ast.Tuple | ast.List):
        for child in ast.iter_child_nodes(node):
            yield from texts(child)


def messages(path: Path) -> Iterator[str]:
    """One line for each message of a module."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name not in CALLS:
            continue
        inside = [] if name in {"ArgumentParser", "Parser", "add_parser", "add_argument"} else node.args
        for part in (*inside, *(keyword.value for keyword in node.keywords if keyword.arg in KEYWORDS)):
            for text in texts(part):
                if " " in text.strip():
                    yield f"{path.relative_to(SOURCE).as_posix()}\t{name}\t{' '.join(text.split())}"


def snapshot() -> str:
    """All messages, sorted by file."""
    return "".join(f"{line}\n" for line in sorted({line for path in SOURCE.rglob("*.py") for line in messages(path)}))


if __name__ == "__main__":
    if sys.argv[1:] != ["--update"]:
        sys.exit("python tests/message_snapshot.py --update")
    SNAPSHOT.write_text(snapshot(), "utf-8")
