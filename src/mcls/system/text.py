"""Tables of text: for the terminal, as Markdown and as CSV."""

import csv
import difflib
import io
import re
import unicodedata
from collections.abc import Iterable, Sequence

Row = Sequence[object]


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """Every cell as one line of text, control characters escaped."""
    return [["" if cell is None else clean(str(cell)) for cell in row] for row in rows]


def clean(text: str) -> str:
    """`text` with characters that control a terminal escaped."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def decimals(value: float | None) -> str:
    """A measure with four digits; empty for None."""
    return "" if value is None else f"{value:.4f}"


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


def plural(number: int, noun: str) -> str:
    """`1 epoch`, `2 epochs`, `3 categories`: for nouns that end in a consonant, e or y."""
    return f"{number:,} {noun if number == 1 else noun.removesuffix('y') + 'ies' if noun[-1] == 'y' else noun + 's'}"


def lasting(seconds: float) -> str:
    """A short duration such as `12 min`; empty if `seconds` is infinite."""
    units = (("d", 86400), ("h", 3600), ("min", 60))
    said = (f"{seconds / length:.{length > 60:d}f} {unit}" for unit, length in units if seconds >= 1.5 * length)
    return next(said, f"{seconds:.0f} s") if seconds < float("inf") else ""


NAMES_SHOWN = 10  # names in a message


LONG = 60  # characters of a value in a message


def composed(name: str) -> str:
    """`name` with each accented letter as one character (NFC): a Mac writes two, which look the same."""
    return unicodedata.normalize("NFC", name)


def natural_order(names: Iterable[str]) -> list[str]:
    """`names` in natural order: 1, 2, 10."""

    def place(part: str) -> tuple[int, int, str]:
        digits = part.lstrip("0")
        return (0, len(digits), digits) if part[0] in "0123456789" else (1, 0, part)

    return sorted(names, key=lambda name: ([place(part) for part in re.findall(r"[0-9]+|[^0-9]+", name)], name))


def assigned(key: str, value: str) -> str:
    """`key=value` as typed on a command line: quoted for the shell and Hydra if it has special characters."""
    return f"{key}={value}" if re.fullmatch(r"[\w./-]+", value) else f"\"{key}='{value}'\""


def quote_names(names: Sequence[str]) -> str:
    """The first NAMES_SHOWN of `names`, quoted, and the number of the others; `nothing` for none."""
    shown = ", ".join(f"'{clean(name)}'" for name in names[:NAMES_SHOWN]) or "nothing"
    return shown + (f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else "")


def shape_text(shape: Sequence[int]) -> str:
    """`3 x 48 x 64`, the order named where it matters: sizes of pictures are width x height elsewhere."""
    order = " (channels x height x width)" if len(shape) == 3 and shape[1] != shape[2] else ""
    return " x ".join(map(str, shape)) + order


def listed(words: Sequence[str], joint: str = "or") -> str:
    """`a, b or c`."""
    return f"{', '.join(words[:-1])} {joint} {words[-1]}" if len(words) > 1 else words[0]


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """`Did you mean 'x'? ` for a mistyped name, else empty."""
    matches = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean '{clean(matches[0])}'? " if matches else ""


def quoted(value: str) -> str:
    """A value from a file as messages show it: quoted, in one line, at most LONG characters."""
    text = clean(value)
    return f"'{text}'" if len(text) <= LONG else f"'{text[:LONG]}...'"
