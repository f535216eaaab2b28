"""From tables of text to arrays of numbers: CSV files read, an encoder learnt from rows, rows encoded; without torch.

A row's number is that of the file, whose header is row 1. An encoder is a plain dictionary that a checkpoint can hold:

    columns      names of the inputs' columns, in order
    means, stds  of each column of numbers over the training rows; 0 and 1 for columns of text
    categories   of each column of text over the training rows, in natural order; none for columns of numbers
    missing, missing_values, unseen    as in configs/dataset/csv.yaml
    target       name of the column of classes
    delimiter    as in configs/dataset/csv.yaml, added for new files; there may be none
"""

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcls.data.delimited import parse_number, parse_numbers, read_records
from mcls.errors import DataError
from mcls.system.text import did_you_mean, natural_order, quote_names, quoted

GROUPED = re.compile(r"[+-]?([0-9]+|[0-9]{1,3}((,[0-9]{2,3})+|(\.[0-9]{3})+))([.,][0-9]+)?")  # as people write them
UNSEEN = "cells hold categories that train does not have; they count as none"
INPUTS = "inputs"  # what messages call the files to be classified


@dataclass(frozen=True)
class Table:
    """A table of text.

    Args:
        source: what messages call it.
        columns: name to cells, without the blanks around them; all of one length.
        rows: number of each row.
    """

    source: str
    columns: dict[str, list[str]]
    rows: list[int]

    def take(self, indices: Sequence[int]) -> "Table":
        """The rows at these places."""
        columns = {name: [cells[index] for index in indices] for name, cells in self.columns.items()}
        return Table(self.source, columns, [self.rows[index] for index in indices])

    def column(self, name: str, key: str) -> list[str]:
        """The cells of a column. Raises DataError when there is none, `key` asked for it."""
        if name not in self.columns:
            there = list(self.columns)
            cut = " Is it cut by something else? Set dataset.delimiter." if len(there) == 1 and key != INPUTS else ""
            raise DataError(
                f"{key}: {self.source} has no column {quoted(name)}. {did_you_mean(name, there)}"
                f"It has {quote_names(there)}.{cut}"
            )
        return self.columns[name]

    def at(self, index: int, name: str) -> str:
        """Where a cell is, for messages."""
        return f"{self.source}, row {self.rows[index]}, column {quoted(name)}"


def read_table(path: Path, delimiter: str = "auto") -> Table:
    """The table in CSV file `path`, with a header row. Columns without a name are left out.

    Raises DataError, naming file and row, when the file is not there or is no such table.
    """
    lines = read_records(path, delimiter)
    _, header = next(lines, (1, []))
    if not header:
        raise DataError(f"{path}: empty. The first row must be a header of column names.")
    check_names(header, str(path))
    body: list[list[str]] = []
    rows: list[int] = []
    for row, cells in lines:
        if len(cells) != len(header):
            raise DataError(
                f"{path}, row {row}: {len(cells)} cells, the header has {len(header)}. Is a quote or a delimiter too "
                "many or too few? If cells are separated by something else, set dataset.delimiter."
            )
        body.append(cells)
        rows.append(row)
    if not body:
        raise DataError(f"{path}: a header without rows.")
    cells_of = zip(*body, strict=True)
    return Table(str(path), {name: list(cells) for name, cells in zip(header, cells_of, strict=True) if name}, rows)


def check_names(header: Sequence[str], source: str) -> None:
    """Raise DataError when two columns have one name."""
    twice = [name for place, name in enumerate(header) if name and name in header[:place]]
    if twice:
        raise DataError(f"{source}, row 1: two columns are called {quoted(twice[0])}. Rename one.")


def looks_numeric(text: str) -> bool:
    """Whether people would read `text` as a number: 0,5 or 26,391.52 or 54 % or $3."""
    bare = "".join(sign for sign in text if not (sign.isspace() or sign == "%" or unicodedata.category(sign) == "Sc"))
    return parse_number(bare) is not None or GROUPED.fullmatch(bare) is not None


def missing_cells(table: Table, columns: Sequence[str], missing_values: Sequence[str]) -> list[tuple[int, str]]:
    """Place and column of every cell of `columns` that is missing, row by row."""
    words = {"", *missing_values}
    found = [(index, name) for name in columns for index, cell in enumerate(table.columns[name]) if cell in words]
    return sorted(found, key=lambda place: place[0])


def fit_encoder(
    table: Table,
    columns: Sequence[str],
    categorical_columns: Sequence[str],
    missing_values: Sequence[str],
    max_categories: int,
) -> dict[str, Any]:
    """Columns, means, stds and categories of an encoder, from the training rows.

    A column is one of numbers when more than half of its cells are; then all of them must be.
    Raises DataError, naming row and column.
    """
    words = {"", *missing_values}
    found: dict[str, Any] = {"columns": list(columns), "means": [], "stds": [], "categories": []}
    for name in columns:
        cells = [cell for cell in table.columns[name] if cell not in words]
        if not cells:
            raise DataError(
                f"{table.source}: column {quoted(name)} has no value in train. Name it in dataset.drop_columns."
            )
        values = [value for value in parse_numbers(cells) if value is not None]
        mean, std, categories = 0.0, 1.0, []
        if name in categorical_columns or 2 * len(values) <= len(cells):
            if name not in categorical_columns:
                check_text(table, name, cells)
            categories = natural_order(set(cells))
            if len(categories) > max_categories:
                raise DataError(
                    f"{table.source}: column {quoted(name)} has {len(categories)} different values in train, more than "
                    f"dataset.max_categories={max_categories}. Name it in dataset.drop_columns, or raise the limit."
                )
        else:
            mean = math.fsum(values) / len(values)
            std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
            std = std if std > 1e-12 * abs(mean) else 1.0
        found["means"].append(mean)
        found["stds"].append(std)
        found["categories"].append(categories)
    return found


def check_text(table: Table, name: str, cells: Sequence[str]) -> None:
    """Raise DataError when most `cells` of a column that would be text are numbers to people."""
    if 2 * sum(map(looks_numeric, cells)) > len(cells):
        odd = [cell for cell in cells if looks_numeric(cell) and parse_number(cell) is None]
        raise DataError(
            f"{table.at(table.columns[name].index(odd[0]), name)}: {quoted(odd[0])} looks like a number but is not "
            f"one ({len(odd)} of {len(cells)} cells). Write numbers as 1234.5, or name the column in "
            "dataset.categorical_columns."
        )


def all_numbers(encoder: dict[str, Any]) -> bool:
    """Whether every column of an encoder is one of numbers, so that inputs are the cells, standardised."""
    return not any(encoder["categories"])


def encode_table(table: Table, encoder: dict[str, Any]) -> NDArray[np.float32]:
    """Inputs float32 (N, F) of the rows of `table`: a standardised value a column of numbers, 0 or 1 a category.

    Raises DataError, naming row, column and value, for what the encoder does not take.
    """
    settings = zip(encoder["columns"], encoder["means"], encoder["stds"], encoder["categories"], strict=True)
    words = {"", *encoder["missing_values"]}
    parts = []
    for name, mean, std, categories in settings:
        cells = table.column(name, INPUTS)
        if encoder["missing"] != "mean" and not words.isdisjoint(cells):
            index = next(index for index, cell in enumerate(cells) if cell in words)
            raise DataError(
                f"{table.at(index, name)}: missing, got {quoted(cells[index])}. The model was trained without missing "
                "values."
            )
        if categories:
            parts.append(indicators(table, name, categories, encoder["unseen"], words))
        else:
            parts.append(standardised(table, name, mean, std, words))
    return np.concatenate(parts, axis=1)


def standardised(table: Table, name: str, mean: float, std: float, words: set[str]) -> NDArray[np.float32]:
    """A column of numbers as (N, 1), 0 where it is missing. Raises DataError for what is no number."""
    cells = table.columns[name]
    values = [mean if cell in words else value for cell, value in zip(cells, parse_numbers(cells), strict=True)]
    wrong = [index for index, value in enumerate(values) if value is None]
    if wrong:
        share = f" ({len(wrong)} of {len(cells)} cells)" if len(cells) > 1 else ""
        raise DataError(
            f"{table.at(wrong[0], name)}: {quoted(cells[wrong[0]])} is not a number{share}. "
            "Fix it, or name the column in dataset.categorical_columns, or the word in dataset.missing_values."
        )
    return ((np.array(values, dtype=np.float64) - mean) / std).astype(np.float32)[:, None]


def indicators(table: Table, name: str, categories: Sequence[str], unseen: str, words: set[str]) -> NDArray[np.float32]:
    """A column of text as (N, categories), 0 where missing. Raises DataError for an unseen one, if that is wrong."""
    cells = table.columns[name]
    places = {category: place for place, category in enumerate(categories)}
    found = np.zeros((len(cells), len(categories)), dtype=np.float32)
    for index, cell in enumerate(cells):
        if cell in places:
            found[index, places[cell]] = 1
        elif cell not in words and unseen == "error":
            raise DataError(
                f"{table.at(index, name)}: {quoted(cell)} is a category that does not occur in train, which has "
                f"{quote_names(categories)}. Fix it, or encode it as none: "
                f"dataset.handle_unknown=ignore, or for predict "
                "--handle-unknown ignore."
            )
    return found


def count_unseen(table: Table, encoder: dict[str, Any]) -> int:
    """How many cells hold categories that an encoder does not know."""
    words = {"", *encoder["missing_values"]}
    known = [
        (name, words.union(categories))
        for name, categories in zip(encoder["columns"], encoder["categories"], strict=True)
        if categories
    ]
    return sum(cell not in cells for name, cells in known for cell in table.columns[name])
