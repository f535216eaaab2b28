"""When and by which command the test set of a run was evaluated: one line each in test_openings.jsonl."""

import contextlib
import os
from datetime import UTC, datetime
from typing import Any

from mcls.runs.folder import RunFolder, parse_json, read_text
from mcls.runs.formats import OPENING
from mcls.system.files import open_plain, to_json


def utc_now() -> str:
    """The current time in the format of a run folder's files."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def record_opening(folder: RunFolder, by: str, times: int = 1) -> None:
    """Add a line; if it can't be written, the number in result.json still counts."""
    line = to_json({"at": utc_now(), "by": by, "times": times}, indent=None)
    with contextlib.suppress(OSError):
        descriptor = open_plain(folder.ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        with os.fdopen(descriptor, "a", encoding="utf-8") as file:
            file.write(f"{line}\n")


def read_ledger(folder: RunFolder) -> list[dict[str, Any]]:
    """The complete lines; empty for a run of an older version."""
    text = read_text(folder.ledger) if folder.ledger.exists() else ""
    whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [parse_json(line, folder.ledger, OPENING) for line in whole]
