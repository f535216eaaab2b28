"""The summary of a run: its accuracy in words, its epochs, its most confused classes."""

from collections.abc import Sequence
from typing import Any

from mcls.runs.folder import RunFolder, parse_json, read_text
from mcls.runs.formats import EPOCH

CURVES = 64_000_000  # bytes of metrics.jsonl that are read
MOST_EPOCHS = 100_000  # that are read of it


def percent(report: dict[str, Any]) -> str:
    """The accuracy of a report with its interval, `92.50 % [88.00, 95.40] of 200`, if it has one."""
    bounds = ", ".join(f"{bound * 100:.2f}" for bound in report.get("interval") or ())
    return f"{report['accuracy'] * 100:.2f} % {f'[{bounds}]' if bounds else '(selected on val)'} of {report['n']:,}"


MATRIX_ROWS = 30  # rows of a confusion matrix that is shown, at most


def most_confused(
    confusion: Sequence[Sequence[int]] | dict[str, list[int]], names: Sequence[str]
) -> tuple[list[list[int]], list[str], list[int]]:
    """A confusion matrix to look at: counts, the names of its rows, and the numbers of its classes.

    Of more than CLASSES classes those that are confused most, and a last row and column for all others.

    Args:
        confusion: as in result.json: C x C counts (row the true class), or the cells that are not 0.
        names: of the C classes.
    """
    if isinstance(confusion, dict):
        cells = list(zip(*(confusion[key] for key in ("true", "predicted", "count")), strict=True))
    else:
        cells = [(row, column, n) for row, line in enumerate(confusion) for column, n in enumerate(line) if n]
    shown = list(range(len(names)))
    if len(names) > MATRIX_ROWS:
        mistakes = sorted((-count, *pair) for *pair, count in cells if pair[0] != pair[1])
        ranked = dict.fromkeys([*(label for _, *pair in mistakes for label in pair), *shown])
        shown = sorted([*ranked][: MATRIX_ROWS - 1])
    rest = len(names) - len(shown)
    labels = [names[label] for label in shown] + ([f"{rest:,} others"] if rest else [])
    row_of = {label: index for index, label in enumerate(shown)}
    counts = [[0] * len(labels) for _ in labels]
    for truth, guess, count in cells:
        counts[row_of.get(truth, -1)][row_of.get(guess, -1)] += count
    return counts, labels, shown


def epoch_records(folder: RunFolder) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, except one that a kill cut off; at most MOST_EPOCHS of them, evenly spaced."""
    content = read_text(folder.metrics, CURVES) if folder.metrics.exists() else ""
    lines = [line for line in content.splitlines(keepends=True) if line.endswith("\n")]
    stride = -(-len(lines) // MOST_EPOCHS) or 1
    return [parse_json(line, folder.metrics, EPOCH) for line in lines[::stride]]
