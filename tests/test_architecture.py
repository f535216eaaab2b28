"""The layers of DESIGN.md and the rules of the house, checked from the code itself."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"
FILES = sorted((SOURCE / "mcls").rglob("*.py"))

# the rooms, highest first: a package, or a module of its own, imports from the rows below and from itself
ROWS = [
    ["__main__", "mcls"],
    ["cli"],
    ["commands"],
    ["sweep"],
    ["inference"],
    ["training"],
    ["config", "report"],
    ["datasets"],
    ["data", "runs", "metrics"],
    ["mixing", "ranks", "significance"],
    ["models", "losses", "schedules", "augmentations"],
    ["system"],
    ["errors", "version"],
]
ROW = {room: row for row, rooms in enumerate(ROWS) for room in rooms}
ALLOWED = {
    "hydra": ("mcls.config", "mcls.commands.train", "mcls.commands.completion", "mcls.sweep.plugins"),
    "omegaconf": ("mcls.config", "mcls.sweep.plugins"),
}
YAML = ("mcls.config", "mcls.commands.train", "mcls.runs.folder")
LATE = {"torchvision", "sklearn", "matplotlib", "tensorboard", "timm"}  # imported where they are used


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


def room(module: str) -> str:
    """The room of a module: `config` of mcls.config.schema."""
    return [*module.split("."), "mcls"][1]


def within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def test_the_files_are_seen() -> None:
    assert len(FILES) >= 30
    assert {"mcls.cli", "mcls.training.run", "mcls.commands.train", "mcls.config.schema", "mcls.models.mlp"} <= set(
        MODULES
    )


def edges() -> list[tuple[str, str]]:
    """Which module of ours imports which other one."""
    return [
        (name, other)
        for name, tree in TREES.items()
        for other in imports(tree)
        if (other == "mcls" or other.startswith("mcls.")) and other != name
    ]


def test_every_room_has_a_row() -> None:
    assert {room(name) for name in MODULES} == ROW.keys()
    assert len({name for name in ROW if (SOURCE / "mcls" / name).is_dir()} - {"mcls"}) == 10


def test_imports_go_down() -> None:
    assert len(edges()) > 200
    up = [(name, other) for name, other in edges() if room(name) != room(other) and ROW[room(other)] <= ROW[room(name)]]
    assert up == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {name: set() for name in MODULES}
    for name, other in edges():
        if other in graph and MODULES[other].name != "__init__.py":
            graph[name].add(other)
    assert len([*graphlib.TopologicalSorter(graph).static_order()]) == len(MODULES)  # or CycleError names the circle


def test_commands_never_import_each_other() -> None:
    commands = [name for name in MODULES if name.startswith("mcls.commands.")]
    assert commands
    for name in commands:
        others = {other for other in imports(TREES[name]) if other.startswith("mcls.commands.")}
        assert others <= {"mcls.commands.options"}, name


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


def test_a_name_exists_once_in_the_package() -> None:
    """So that a search for it finds one thing; each command has its own `run` and `parser`."""
    homes: dict[str, list[str]] = {}
    for module, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name not in ("run", "parser"):
                homes.setdefault(node.name, []).append(module)
    assert len(homes) >= 500
    assert {name: modules for name, modules in homes.items() if len(modules) > 1} == {}
