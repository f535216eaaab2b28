"""The pages that people read: every link leads to a file."""

import re
import shlex
from pathlib import Path

import pytest

from configuration_page import PAGE, page
from mcls.cli import main
from message_snapshot import SNAPSHOT

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)", page.read_text("utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


def test_the_readme_is_short_and_names_every_page() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    assert len(readme.splitlines()) <= 200
    cells = [cell for line in readme.splitlines() if line.startswith("|") for cell in line.split("|")]
    assert [cell for cell in cells if len(cell.strip()) > 120] == []
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"docs/{page.name}" not in readme] == []


def test_the_page_of_the_keys_is_current() -> None:
    assert PAGE.read_text("utf-8") == page(), "python tests/configuration_page.py --update"


def test_the_messages_of_the_troubleshooting_page_are_those_of_mcls() -> None:
    messages = [line.split("\t")[2].replace("{...}", "...") for line in SNAPSHOT.read_text("utf-8").splitlines()]
    headings = re.findall(r"^### `(.+)`$", (ROOT / "docs" / "troubleshooting.md").read_text("utf-8"), re.MULTILINE)
    assert len(headings) >= 20
    assert [heading for heading in headings if not any(message.startswith(heading) for message in messages)] == []


def train_commands() -> list[str]:
    """The `mcls train` lines of all pages, but for those that show an error or need files of the reader's own."""
    lines = [line for page in PAGES for line in page.read_text("utf-8").splitlines()]
    shown = [(line.strip().removeprefix("$ "), after) for line, after in zip(lines, [*lines[1:], ""], strict=True)]
    found = {line for line, after in shown if line.startswith("mcls train ") and not after.startswith("    mcls: ")}
    own = ("--config-dir", "trust=", "...", "key=", "--from", "--help")
    return sorted(line for line in found if not any(word in line for word in own))


@pytest.mark.parametrize("command", train_commands())
def test_every_command_of_the_pages_composes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = shlex.split(command, comments=True)[1:]
    assert main([*arguments, "--cfg", "job"]) == 0, capsys.readouterr().err
