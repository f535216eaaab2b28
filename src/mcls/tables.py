"""Tables of text: for the terminal, as Markdown and as CSV."""

import csv
import io
from collections.abc import Sequence

Row = Sequence[object]


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """Every cell as text in one line, its control characters made visible."""
    return [["" if cell is None else clean(str(cell)) for cell in row] for row in rows]


def clean(text: str) -> str:
    """`text` without characters that a terminal would obey."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


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
