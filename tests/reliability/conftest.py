"""The reliability tests: how much of each, the fork server, and the counts for RELIABILITY.md.

`MCLS_RELIABILITY=full` runs all figures; without it the part runs that guards every change. A full run that passes
writes RELIABILITY.md at the root of the repository.
"""

import os
import platform
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from forks import Server  # noqa: E402

import makers  # noqa: E402

FULL = os.environ.get("MCLS_RELIABILITY") == "full"
ROOT = HERE.parents[1]
COUNTS: dict[str, list[str]] = {}
SECONDS: dict[str, float] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here is slow; what is marked `full` runs in a full run only."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slow)
            if item.get_closest_marker("full") and not FULL:
                item.add_marker(pytest.mark.skip(reason="runs with MCLS_RELIABILITY=full"))


def pytest_configure(config: pytest.Config) -> None:
    """The marker."""
    config.addinivalue_line("markers", "full: runs in make reliability alone")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add up the time of each promise."""
    name = Path(report.nodeid.split("::")[0]).stem
    if name.startswith("test_p") and name[6:8].isdigit():
        SECONDS[f"P{int(name[6:8])}"] = SECONDS.get(f"P{int(name[6:8])}", 0.0) + report.duration


@pytest.fixture(scope="session")
def size() -> Callable[[int, int], int]:
    """`size(part, full)`: how many of something this run does."""
    return lambda part, full: full if FULL else part


@pytest.fixture
def count(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Write down what a test found, for RELIABILITY.md; kept only if the test passes."""
    promise = f"P{int(request.path.stem[6:8])}"
    return lambda text: COUNTS.setdefault(promise, []).append(text)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The fork server."""
    found = Server(tmp_path_factory.mktemp("forks"))
    yield found
    found.close()


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with a small MNIST."""
    root = tmp_path_factory.mktemp("digits")
    makers.write_mnist(root)
    return root


@pytest.fixture
def mcls(server: Server, digits: Path, tmp_path: Path) -> Callable[..., Any]:
    """`mcls("train", ...)` runs a command to its end in `tmp_path` and returns the child."""

    def run(*arguments: str, cwd: Path = tmp_path, **keys: Any) -> Any:
        return server.run(*arguments, cwd=cwd, **{"MCLS_DATA": str(digits), **keys})

    return run


@pytest.fixture
def start(server: Server, digits: Path, tmp_path: Path) -> Callable[..., Any]:
    """Like `mcls`, and does not wait for the end."""

    def begin(*arguments: str, cwd: Path = tmp_path, **keys: Any) -> Any:
        return server.start(*arguments, cwd=cwd, **{"MCLS_DATA": str(digits), **keys})

    return begin


def shown(counts: list[str]) -> str:
    """What was counted; many cases without a number of their own as numbers of their kinds, the first words."""
    cases = [text for text in counts if not text[0].isdigit()]
    if len(cases) < 15:
        return "; ".join(counts)
    kinds = ", ".join(f"{kind} {number}" for kind, number in Counter(text.split()[0] for text in cases).items())
    return "; ".join([f"{len(cases)} cases ({kinds})", *(text for text in counts if text[0].isdigit())])


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the counts of a full run that passed into RELIABILITY.md: the rows of the promises whose files it ran."""
    options = session.config.option
    if not FULL or exitstatus != 0 or options.keyword or any("::" in name for name in session.config.args):
        return
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    import torch

    header = (
        f"Last run: {model}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}; "
        "`make reliability`. Each row gives the result and date of the last full test of its guarantee.\n"
    )
    page = ROOT / "RELIABILITY.md"
    before, _, rest = page.read_text().partition("<!-- counts -->\n")
    table, _, after = rest.partition("<!-- end of counts -->\n")
    rows = {int(found[1]): found[0] for found in re.finditer(r"^\| P(\d+) \|.*$", table, re.MULTILINE)}
    for promise, counts in COUNTS.items():
        found = f"| {promise} | {shown(counts)} | {SECONDS.get(promise, 0):.0f} | {date.today().isoformat()} |"
        rows[int(promise[1:])] = found
    head = ["| guarantee | result | seconds | date |", "| --- | --- | ---: | --- |"]
    table = "\n".join([*head, *(rows[number] for number in sorted(rows))])
    page.write_text(f"{before}<!-- counts -->\n{header}\n{table}\n<!-- end of counts -->\n{after}")
