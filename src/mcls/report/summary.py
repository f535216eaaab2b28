"""The summary of a run: its accuracy in words, its epochs."""

from typing import Any

from mcls.runs.folder import RunFolder, parse_json, read_text
from mcls.runs.formats import EPOCH

CURVES = 64_000_000  # bytes of metrics.jsonl that are read
MOST_EPOCHS = 100_000  # that are read of it


def percent(report: dict[str, Any]) -> str:
    """The accuracy of a report with its interval, `92.50 % [88.00, 95.40] of 200`, if it has one."""
    bounds = ", ".join(f"{bound * 100:.2f}" for bound in report.get("interval") or ())
    return f"{report['accuracy'] * 100:.2f} % {f'[{bounds}]' if bounds else '(selected on val)'} of {report['n']:,}"


def epoch_records(folder: RunFolder) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, except one that a kill cut off; at most MOST_EPOCHS of them, evenly spaced."""
    content = read_text(folder.metrics, CURVES) if folder.metrics.exists() else ""
    lines = [line for line in content.splitlines(keepends=True) if line.endswith("\n")]
    stride = -(-len(lines) // MOST_EPOCHS) or 1
    return [parse_json(line, folder.metrics, EPOCH) for line in lines[::stride]]
