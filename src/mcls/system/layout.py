"""Text that fits a terminal: cells are counted, not characters, since a Chinese character takes two."""

import re
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from mcls.system.text import Row, cells

WHOLE = sys.maxsize  # cells of a line that ends nowhere, in a file or a pipe
LEAST, SHORTEST = 30, 10  # cells that a shortened column keeps, and that it keeps in a very narrow terminal
GAP = "..."  # for what is left out
# a command to type: it stays whole, to be copied, though it may be longer than a line
QUOTED = r"""[^\s;]*(?:'[^']*'|"[^"]*")[^\s;]*"""
COMMAND = rf"(?:\S+ -m |\S*/)?mcls [a-z]+(?: (?:{QUOTED}|[^\s;]+))?(?: (?:{QUOTED}|[^\s;]*[-=/.<>*\[][^\s;]*))*"
WORD = re.compile(rf"(?:{COMMAND}|\S)\S*")
LABEL = re.compile(r"mcls: |\w+ {2,}| *")  # begins a line; the lines that continue it begin below its text
KEY = re.compile(r"[a-z]+(\.\w+)+")  # of a configuration
RESULTS = ("epochs",)  # headings of measures, which the last part of a key is not to look like
Styles = Mapping[int, str]


def cell_width(text: str) -> int:
    """Cells that `text` takes on a terminal: two for a wide character, none for a combining accent."""
    if text.isascii():
        return len(text)
    narrow = sum(unicodedata.category(character) not in ("Mn", "Me", "Cf") for character in text)
    return narrow + sum(unicodedata.east_asian_width(character) in "WF" for character in text)


def cut_in_the_middle(text: str, width: int) -> str:
    """`text` shortened to at most `width` cells; its middle is left out; two thirds of the rest are its end."""
    if cell_width(text) <= width:
        return text
    start, end = "", ""
    while cell_width(start + text[len(start)]) <= (width - len(GAP)) // 3:
        start += text[len(start)]
    while cell_width(start + GAP + text[-1 - len(end)] + end) <= width:
        end = text[-1 - len(end)] + end
    return start + GAP + end


def wrapped(text: str, width: int) -> str:
    """`text` with lines of more than `width` cells wrapped between words."""
    lines: list[str] = []
    for line in text.split("\n"):
        if cell_width(line) <= width:
            lines.append(line)
            continue
        label = LABEL.match(line)[0]  # type: ignore[index]  # which matches anything
        filled = label
        for word in WORD.findall(line, len(label)):
            longer = filled + " " * bool(filled.strip() and filled != label) + word
            if cell_width(longer) > width and filled != label:
                lines.append(filled.rstrip())
                longer = " " * len(label) + word
            filled = longer
            if longer.strip() == word and word[-1] in ".," and re.match(COMMAND, word):  # what follows is no part of it
                lines.append(filled.rstrip(".,"))
                filled = " " * len(label)
        lines += [filled] if filled.strip() else []
    return "\n".join(lines)


def plain_table(
    header: Sequence[str],
    rows: Sequence[Row],
    width: int = WHOLE,
    names: Sequence[int] = (),
    styles: Styles | None = None,
) -> str:
    """Columns aligned with spaces.

    A table of more than `width` cells is made narrower in steps until it fits: keys in headings lose what is before
    their last dot, headings are wrapped between words, the columns numbered in `names` and headings are shortened in
    the middle. Columns that do not fit even then continue below, beside the first column again.

    Args:
        styles: what to put before the line of a row, by its number; each such line ends with the code that ends it.
    """
    lines = cells(rows)
    columns = [list(column) for column in zip(*lines, strict=True)] if lines else [[] for _ in header]
    titles = [[name] for name in header]
    widths = widths_of(titles, columns)
    for narrower in (last_part_of, broken, brief):
        if total(widths) > width:
            titles = [narrower(*pair, header) for pair in zip(titles, columns, strict=True)]
            widths = widths_of(titles, columns)
    others = [width_of for index, width_of in enumerate(widths) if index not in names]
    least = (width - total([*others, *[0] * len(names)])) // max(1, len(names))  # so that all fit beside each other
    if least < SHORTEST:
        least = max(SHORTEST, width - 2 - max(others, default=0))  # so that any other fits beside it
    least = min(LEAST, least)
    whole = list(columns)
    for index in sorted(names, key=lambda index: -widths[index]):
        if (over := total(widths) - width) > 0:
            columns[index] = [cut_in_the_middle(cell, max(least, widths[index] - over)) for cell in whole[index]]
            widths = widths_of(titles, columns)
    if total(widths) > width:  # then each goes on below, where it has the line to itself beside the first column
        for index in {*names} - {0}:
            rest = max(least, width - 2 - widths[0])
            columns[index] = [cut_in_the_middle(cell, rest) for cell in whole[index]]
        widths = widths_of(titles, columns)
    shown = []
    for block in blocks(widths, width):
        height = max(len(titles[index]) for index in block)
        heads = [[""] * (height - len(titles[index])) + titles[index] for index in block]
        body = [(*head, *columns[index]) for head, index in zip(heads, block, strict=True)]
        ends = {height + index: style for index, style in (styles or {}).items()}
        shown += [*aligned(body, [widths[index] for index in block], ends), ""]
    return "\n".join(shown[:-1])


def plain_list(header: Sequence[str], rows: Sequence[Row], width: int) -> str:
    """A table that is too wide for its lines: each row is its first cell, and below it the others, `heading=cell`."""
    shown, names = [], [last_part_of([name], [], header)[0] for name in header[1:]]
    for first, *others in cells(rows):
        pairs = [f"{name}={cell}" for name, cell in zip(names, others, strict=True) if cell]
        shown += [cut_in_the_middle(first, width), wrapped(f"  {', '.join(pairs)}", width)]
    return "\n".join(shown)


def columns_that_fit(header: Sequence[str], rows: Sequence[Row], width: int, optional: Sequence[int]) -> list[int]:
    """Numbers of the columns for lines of `width` cells: all but the `optional` ones, and of these those that fit
    beside the others, the first ones first, with headings as narrow as `plain_table` makes them."""
    if width == WHOLE:
        return list(range(len(header)))
    widths = least_widths(header, rows)
    kept = [index for index in range(len(header)) if index not in optional]
    for index in optional:
        if total([widths[other] for other in (*kept, index)]) <= width:
            kept.append(index)
    return sorted(kept)


def least_widths(header: Sequence[str], rows: Sequence[Row]) -> list[int]:
    """Width of each column if nothing is shortened."""
    columns = [list(column) for column in zip(*cells(rows), strict=True)] if rows else [[] for _ in header]
    named = [last_part_of([name], [], header) for name in header]
    return widths_of([broken(*pair, header) for pair in zip(named, columns, strict=True)], columns)


def broken(title: list[str], column: Sequence[str], header: Sequence[str]) -> list[str]:
    """A heading wrapped to the width that its column needs anyway."""
    words = re.sub("([_/])", r"\1 ", title[0])
    lines = wrapped(words, max(map(cell_width, (*words.split(), *column)), default=0)).split("\n")
    return [re.sub("([_/]) ", r"\1", line) for line in lines]


def last_part_of(title: list[str], column: Sequence[str], header: Sequence[str]) -> list[str]:
    """A heading such as optimizer.lr as `lr`, unless another heading ends in that too."""
    short = title[0].rpartition(".")[2] if KEY.fullmatch(title[0]) else title[0]
    alike = [name for name in (*header, *RESULTS) if name.rpartition(".")[2] == short]
    return [short] if len(alike) == 1 else title


def brief(title: list[str], column: Sequence[str], header: Sequence[str]) -> list[str]:
    """A heading of at most LEAST cells."""
    return [cut_in_the_middle(line, LEAST) for line in title]


def widths_of(titles: Sequence[Sequence[str]], columns: Sequence[Sequence[str]]) -> list[int]:
    """Cells of each column."""
    return [max(map(cell_width, (*title, *column))) for title, column in zip(titles, columns, strict=True)]


def total(widths: Sequence[int]) -> int:
    """Cells of a line with columns of these widths."""
    return sum(widths) + 2 * (len(widths) - 1)


def blocks(widths: Sequence[int], width: int) -> Iterator[list[int]]:
    """Groups of columns that fit beside each other, by number; each begins with the first column."""
    block = [0]
    for index in range(1, len(widths)):
        if len(block) > 1 and total([widths[other] for other in (*block, index)]) > width:
            yield block
            block = [0]
        block.append(index)
    yield block


def aligned(columns: Sequence[Sequence[str]], widths: Sequence[int], styles: Styles) -> Iterator[str]:
    """The lines of columns beside each other."""
    for number, line in enumerate(zip(*columns, strict=True)):
        padded = (cell + " " * (width - cell_width(cell)) for cell, width in zip(line, widths, strict=True))
        text = "  ".join(padded).rstrip()
        yield f"{styles[number]}{text}\x1b[0m" if number in styles else text
