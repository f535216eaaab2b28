"""The layers of DESIGN.md and the rules of the house, checked from the code itself."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
FILES = sorted((SOURCE / "mcls").rglob("*.py"))

# highest first; a module stands for what is below it too, the longest name counts
ROWS = [
    ["mcls.__main__"],
    ["mcls.cli"],
    ["mcls.commands"],
    ["mcls.session", "mcls.comparing", "mcls.exporting", "mcls.inference", "mcls.options"],
    ["mcls.resuming"],
    ["mcls.assembly", "mcls.evaluation"],
    ["mcls.opened"],
    ["mcls.config"],
    ["mcls.results", "mcls.console", "mcls.listing", "mcls.sweeps", "mcls.page"],
    ["mcls.trainer", "mcls.checks"],
    ["mcls.forward"],
    ["mcls.data.image_folder", "mcls.data.tabular"],
    ["mcls.data.datasets", "mcls.data.loader", "mcls.checkpoint", "mcls.tracking", "mcls.samples"],
    ["mcls.runs", "mcls.data.encoding", "mcls.data.folders", "mcls.data.pictures"],
    ["mcls.data.delimited", "mcls.data.checked"],
    ["mcls.data.names", "mcls.formats"],
    [
        *(f"mcls.{name}" for name in ("files", "machine", "losses", "metrics", "optim", "figures", "models", "tables")),
        *("mcls.images", "mcls.charts", "mcls.data.augment"),
    ],
    ["mcls.distributed"],
    ["mcls.signals"],
    ["mcls.errors", "mcls.torchrun", "mcls.renamed"],
    ["mcls"],
]
# what may import its neighbour
BESIDE = {("mcls.data.loader", "mcls.data.datasets"), ("mcls.models.small", "mcls.models.resnet")}
ALLOWED = {
    "hydra": ("mcls.config", "mcls.commands.train", "mcls.commands.completion"),
    "omegaconf": ("mcls.config", "mcls.commands.train"),
}
YAML = ("mcls.config", "mcls.commands.train", "mcls.runs")
LATE = {"torchvision", "sklearn", "matplotlib", "tensorboard"}  # imported where they are used


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in MODULES.items()}


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module that `tree` imports, at any depth, our own by the longest name that is a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else str(node.module)


def top_level(tree: ast.Module) -> Iterator[str]:
    """What is imported as soon as the module is, but for what only type checkers see."""
    for node in tree.body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield from imports(node)


def row_of(module: str) -> tuple[int, str]:
    """Row of a module, and the entry that puts it there."""
    fits = [
        (len(entry), row, entry)
        for row, entries in enumerate(ROWS)
        for entry in entries
        if module == entry or (module.startswith(f"{entry}.") and entry != "mcls")
    ]
    assert fits, f"{module} is in no row"
    _, row, entry = max(fits)
    return row, entry


def within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def test_the_files_are_seen() -> None:
    assert len(FILES) >= 30
    assert {"mcls.cli", "mcls.session", "mcls.commands.train", "mcls.config.schema", "mcls.models.mlp"} <= set(MODULES)


@pytest.mark.parametrize("module", [name for name in MODULES if name not in ("mcls.data", "mcls.models")])
def test_imports_go_down(module: str) -> None:
    row, entry = row_of(module)
    for other in imports(TREES[module]):
        if other != "mcls" and not other.startswith("mcls."):
            continue
        below, its_entry = row_of(other)
        same_package = entry == its_entry == "mcls.config" or other == entry == "mcls.commands"
        assert below > row or same_package or (module, other) in BESIDE, f"{module} imports {other}"


def test_the_layers_are_looked_at() -> None:
    edges = [(name, other) for name, tree in TREES.items() for other in imports(tree) if other.startswith("mcls.")]
    assert len(edges) > 60
    assert all(row_of(name) for name in MODULES if name not in ("mcls.data", "mcls.models"))


def test_commands_never_import_each_other() -> None:
    commands = [name for name in MODULES if name.startswith("mcls.commands.")]
    assert commands
    for name in commands:
        assert [other for other in imports(TREES[name]) if other.startswith("mcls.commands.")] == []


def test_configuration_libraries_stay_at_the_seam() -> None:
    seen = 0
    for name, tree in TREES.items():
        for other in imports(tree):
            package = other.split(".")[0]
            if package in ALLOWED:
                assert within(name, ALLOWED[package]), f"{name} imports {other}"
                seen += 1
            if package == "yaml":
                assert within(name, YAML), f"{name} imports {other}"
                seen += 1
    assert seen >= 5


def test_slow_libraries_are_imported_where_they_are_used() -> None:
    for name, tree in TREES.items():
        packages = {other.split(".")[0] for other in top_level(tree)}
        assert not packages & LATE, name
        assert not [other for other in top_level(tree) if other.startswith("torch.utils.tensorboard")], name
    assert {other.split(".")[0] for tree in TREES.values() for other in imports(tree)} >= LATE


def test_composing_does_not_import_torch() -> None:
    code = (
        "import sys, mcls.cli; from mcls.config.compose import checker\n"
        "with checker() as check: check.check(['dataset=cifar10', 'model=resnet18'], False)\n"
        f"heavy = {sorted(LATE | {'torch', 'numpy'})!r}\n"
        "sys.exit(','.join(name for name in heavy if name in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_class_inherits_from_a_concrete_class_of_ours() -> None:
    classes = {node.name: node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    assert len(classes) >= 15
    errors = {node.name for node in ast.walk(TREES["mcls.errors"]) if isinstance(node, ast.ClassDef)}
    for name, node in classes.items():
        for base in map(ast.unparse, node.bases):
            if base in classes and name in errors:
                assert base == "MclsError"  # the one abstract class of ours
            else:
                assert base not in classes, f"{name}({base})"


def test_assert_is_for_what_no_user_can_cause() -> None:
    """What is there tells mypy a type; each stands beside the call that torchvision left untyped."""
    found = [
        f"{name}: {ast.unparse(node)}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if type(node) is ast.Assert
    ]
    assert len(found) <= 3
    assert all("isinstance(" in line for line in found), found


def test_functions_and_files_are_short() -> None:
    functions = 0
    for name, tree in TREES.items():
        assert len(MODULES[name].read_text("utf-8").splitlines()) <= 330, name
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions += 1
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= 60, f"{name}.{node.name}: {length} lines"
    assert functions > 150


def public(tree: ast.Module) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef]:
    """The module, its classes and functions, and their methods; not what functions keep inside."""
    yield tree
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            yield node
        if isinstance(node, ast.ClassDef):
            yield from (part for part in node.body if isinstance(part, ast.FunctionDef) and part.name[0] != "_")


def test_everything_public_has_a_docstring() -> None:
    nodes = [(name, node) for name, tree in TREES.items() for node in public(tree)]
    assert len(nodes) > 200
    assert [f"{name}: {ast.unparse(node)[:60]}" for name, node in nodes if not ast.get_docstring(node)] == []
