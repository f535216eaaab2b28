"""Tables of text: for the terminal, as Markdown and as CSV."""

import csv
import io
from collections.abc import Sequence

Row = Sequence[object]
CLASSES = 30  # rows of a confusion matrix that is shown, at most


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """Every cell as text in one line, its control characters made visible."""
    return [["" if cell is None else clean(str(cell)) for cell in row] for row in rows]


def clean(text: str) -> str:
    """`text` without characters that a terminal would obey."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


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
    if len(names) > CLASSES:
        mistakes = sorted((-count, *pair) for *pair, count in cells if pair[0] != pair[1])
        ranked = dict.fromkeys([*(label for _, *pair in mistakes for label in pair), *shown])
        shown = sorted([*ranked][: CLASSES - 1])
    rest = len(names) - len(shown)
    labels = [names[label] for label in shown] + ([f"{rest:,} others"] if rest else [])
    place = {label: index for index, label in enumerate(shown)}
    counts = [[0] * len(labels) for _ in labels]
    for truth, guess, count in cells:
        counts[place.get(truth, -1)][place.get(guess, -1)] += count
    return counts, labels, shown


def decimals(value: float | None) -> str:
    """A measure with four digits, nothing for none."""
    return "" if value is None else f"{value:.4f}"


def plain(header: Sequence[str], rows: Sequence[Row]) -> str:
    """Columns aligned with spaces."""
    lines = [list(header), *cells(rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def markdown(header: Sequence[str], rows: Sequence[Row]) -> str:
    """A Markdown table."""
    lines = [list(header), ["---"] * len(header), *cells(rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def comma_separated(header: Sequence[str], rows: Sequence[Row], safe: bool = True) -> str:
    """CSV; a cell that a spreadsheet would take for a formula is quoted with an apostrophe, unless `safe` is False."""
    guarded = tuple("=+@") if safe else ()
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    for row in cells(rows):
        writer.writerow(["'" + cell if cell[:1] in guarded else cell for cell in row])
    return buffer.getvalue()
