"""From tables of text to arrays of numbers: CSV files read, an encoder learnt from rows, rows encoded; without torch.

A row's number is that of the file, whose header is row 1. An encoder is a plain dictionary that a checkpoint can hold:

    columns      names of the inputs' columns, in order
    means, stds  of each column of numbers over the training rows; 0 and 1 for columns of text
    categories   of each column of text over the training rows, in natural order; none for columns of numbers
    missing, missing_values, unseen    as in configs/dataset/csv.yaml
    target       name of the column of classes
    delimiter    as in configs/dataset/csv.yaml, added for new files; there may be none
    members      of an ensemble whose members encode rows differently: their encoders; inputs are theirs side by side
"""

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mcls.data.delimited import (
    MAX_TABLE_BYTES,
    Records,
    check_header,
    detect,
    is_parquet,
    parse_number,
    read_at_once,
    read_parquet,
    read_rows,
)
from mcls.errors import DataError
from mcls.system.text import did_you_mean, natural_order, plural, quote_names, quoted

if TYPE_CHECKING:
    import polars as pl

GROUPED = re.compile(r"[+-]?([0-9]+|[0-9]{1,3}((,[0-9]{2,3})+|(\.[0-9]{3})+))([.,][0-9]+)?")  # as people write them
UNSEEN = "with a category that train does not have, which counts as none"
INPUTS = "inputs"  # what messages call the files to be classified


@dataclass(frozen=True)
class Table:
    """A table of text.

    Args:
        source: what messages call it.
        columns: name to cells of text, without the blanks around them; all of one length.
        rows: number of each row.
    """

    source: str
    columns: dict[str, "pl.Series"]
    rows: Sequence[int]

    @staticmethod
    def of(source: str, columns: Mapping[str, Sequence[str]], rows: Sequence[int]) -> "Table":
        """The table of these cells."""
        import polars as pl

        return Table(source, {name: pl.Series(cells, dtype=pl.String) for name, cells in columns.items()}, rows)

    def take(self, indices: Sequence[int]) -> "Table":
        """The rows at these places."""
        import polars as pl

        places = pl.Series(list(indices), dtype=pl.Int64)
        columns = {name: cells.gather(places) for name, cells in self.columns.items()}
        return Table(self.source, columns, [self.rows[index] for index in indices])

    def column(self, name: str, key: str) -> "pl.Series":
        """The cells of a column. Raises DataError when there is none, `key` asked for it."""
        if name not in self.columns:
            there = list(self.columns)
            cut = " Is it cut by something else? Set dataset.delimiter." * (
                len(there) == 1 and key.startswith("dataset.")
            )
            raise DataError(
                f"{key}: {self.source} has no column {quoted(name)}. {did_you_mean(name, there)}"
                f"It has {quote_names(there)}.{cut}"
            )
        return self.columns[name]

    def at(self, index: int, name: str) -> str:
        """Where a cell is, for messages."""
        return f"{self.source}, row {self.rows[index]}, column {quoted(name)}"


def read_table(path: Path, delimiter: str = "auto") -> Table:
    """The table in CSV or Parquet file `path`, with a header row. Columns without a name are left out.

    Raises DataError, naming file and row, when the file is not there or is no such table.
    """
    frame: pl.DataFrame | None
    lines: Records
    if is_parquet(path):
        frame, first, lines = read_parquet(path), 1, iter(())
        header = frame.columns
    else:
        layout = detect(path, delimiter)
        check_header(layout)
        lines = read_rows(layout)
        first, header = next(lines, (1, []))
        frame = read_at_once(layout, first, len(header)) if header else None
    if not header:
        raise DataError(f"{path}: empty. The first row must be a header of column names.")
    check_names(header, str(path))
    if frame is None:
        return read_one_by_one(path, lines, header)
    if not frame.height:
        raise DataError(f"{path}: a header without rows.")
    columns = {name: cells for name, cells in zip(header, frame, strict=True) if name}
    return Table(str(path), columns, range(first + 1, first + 1 + frame.height))


def read_one_by_one(path: Path, lines: Records, header: Sequence[str]) -> Table:
    """The table of the `lines` that follow `header`. Raises DataError for one that is too short or too long."""
    body: list[list[str]] = []
    rows: list[int] = []
    for row, cells in lines:
        if len(cells) != len(header):
            raise DataError(
                f"{path}, row {row}: {plural(len(cells), 'cell')}, the header has {len(header)}. Is a quote or a "
                "delimiter too many or too few? If cells are separated by something else, set dataset.delimiter."
            )
        body.append(cells)
        rows.append(row)
    if not body:
        raise DataError(f"{path}: a header without rows.")
    cells_of = zip(*body, strict=True)
    return Table.of(str(path), {name: cells for name, cells in zip(header, cells_of, strict=True) if name}, rows)


def check_names(header: Sequence[str], source: str) -> None:
    """Raise DataError when two columns have one name."""
    twice = [name for column, name in enumerate(header) if name and name in header[:column]]
    if twice:
        raise DataError(f"{source}, row 1: two columns are called {quoted(twice[0])}. Rename one.")


def looks_numeric(text: str) -> bool:
    """Whether people would read `text` as a number: 0,5 or 26,391.52 or 54 % or $3."""
    bare = "".join(sign for sign in text if not (sign.isspace() or sign == "%" or unicodedata.category(sign) == "Sc"))
    return parse_number(bare) is not None or GROUPED.fullmatch(bare) is not None


def missing_cells(table: Table, columns: Sequence[str], missing_values: Sequence[str]) -> list[tuple[int, str]]:
    """Place and column of every cell of `columns` that is missing, row by row."""
    words = ["", *missing_values]
    gaps = [(index, name) for name in columns for index in table.columns[name].is_in(words).arg_true().to_list()]
    return sorted(gaps, key=lambda gap: gap[0])


def fit_encoder(
    table: Table,
    places: NDArray[np.int64],
    columns: Sequence[str],
    categorical_columns: Sequence[str],
    missing_values: Sequence[str],
    max_categories: int,
) -> dict[str, Any]:
    """Columns, means, stds and categories of an encoder, from the training rows, which are at `places` in `table`.

    A column is one of numbers when more than half of its cells are; then all of them must be.
    Raises DataError, naming row and column.
    """
    words = ["", *missing_values]
    encoder: dict[str, Any] = {"columns": list(columns), "means": [], "stds": [], "categories": []}
    for name in columns:
        column = table.columns[name].gather(places)
        cells = column.filter(~column.is_in(words))
        if not len(cells):
            raise DataError(
                f"{table.source}: column {quoted(name)} has no value in train. Name it in dataset.drop_columns."
            )
        values = as_numbers(cells).drop_nulls().to_numpy()
        mean, std, categories = 0.0, 1.0, []
        if name in categorical_columns or 2 * len(values) <= len(cells):
            if name not in categorical_columns:
                check_text(table, name, cells, places[~column.is_in(words).to_numpy()])
            categories = natural_order(cells.unique().to_list())
            if len(categories) > max_categories:
                raise DataError(
                    f"{table.source}: column {quoted(name)} has {len(categories)} different values in train, more than "
                    f"dataset.max_categories={max_categories}. Name it in dataset.drop_columns, or raise the limit."
                )
        else:
            mean = math.fsum(values.tolist()) / len(values)
            std = math.sqrt(math.fsum(map(pow, (values - mean).tolist(), repeat(2))) / len(values))
            std = std if std > 1e-12 * abs(mean) else 1.0
        encoder["means"].append(mean)
        encoder["stds"].append(std)
        encoder["categories"].append(categories)
    return encoder


def check_text(table: Table, name: str, cells: "pl.Series", places: NDArray[np.int64]) -> None:
    """Raise DataError when most `cells`, at `places`, of a column that would be text are numbers to people."""
    texts = cells.unique().to_list()
    if 2 * cells.is_in([text for text in texts if looks_numeric(text)]).sum() > len(cells):
        odd = cells.is_in([text for text in texts if looks_numeric(text) and parse_number(text) is None])
        cell = cells.filter(odd)[0]
        raise DataError(
            f"{table.at(places[odd.arg_true()[0]], name)}: {quoted(cell)} looks like a number but is "
            f"not one ({odd.sum()} of {plural(len(cells), 'cell')}). Write numbers as 1234.5, or name the column in "
            "dataset.categorical_columns."
        )


def as_numbers(cells: "pl.Series") -> "pl.Series":
    """What `parse_number` finds in each cell, float64; null for none."""
    import polars as pl

    values = cells.cast(pl.Float64, strict=False)
    return values.set(~(values.abs() <= MAX_TABLE_BYTES), None)


def all_numbers(encoder: dict[str, Any]) -> bool:
    """Whether every column of an encoder is one of numbers, so that inputs are the cells, standardised."""
    return not any(encoder["categories"])


def encode_table(table: Table, encoder: dict[str, Any]) -> NDArray[np.float32]:
    """Inputs float32 (N, F) of the rows of `table`: a standardised value a column of numbers, 0 or 1 a category.

    Raises DataError, naming row, column and value, for what the encoder does not take.
    """
    if "members" in encoder:
        each = [{**member, "unseen": encoder["unseen"]} for member in encoder["members"]]
        return np.concatenate([encode_table(table, member) for member in each], axis=1)
    settings = zip(encoder["columns"], encoder["means"], encoder["stds"], encoder["categories"], strict=True)
    words = ["", *encoder["missing_values"]]
    parts = []
    for name, mean, std, categories in settings:
        cells = table.column(name, INPUTS)
        gaps = cells.is_in(words)
        if encoder["missing"] != "mean" and gaps.any():
            index = gaps.arg_true()[0]
            raise DataError(
                f"{table.at(index, name)}: missing, got {quoted(cells[index])}. The model was trained without missing "
                "values."
            )
        if categories:
            parts.append(indicators(table, name, categories, encoder["unseen"], gaps))
        else:
            parts.append(standardised(table, name, mean, std, gaps))
    return np.concatenate(parts, axis=1)


def standardised(table: Table, name: str, mean: float, std: float, gaps: "pl.Series") -> NDArray[np.float32]:
    """A column of numbers as (N, 1), 0 in its `gaps`. Raises DataError for what is no number."""
    cells = table.columns[name]
    values = as_numbers(cells)
    wrong = (values.is_null() & ~gaps).arg_true()
    if len(wrong):
        share = f" ({len(wrong)} of {len(cells)} cells)" if len(cells) > 1 else ""
        raise DataError(
            f"{table.at(wrong[0], name)}: {quoted(cells[wrong[0]])} is not a number{share}. "
            "Fix it, or train with the column in dataset.categorical_columns, or the word in dataset.missing_values."
        )
    filled: NDArray[np.float64] = values.scatter(gaps.arg_true(), mean).to_numpy()
    return ((filled - mean) / std).astype(np.float32)[:, None]


def indicators(
    table: Table, name: str, categories: Sequence[str], unseen: str, gaps: "pl.Series"
) -> NDArray[np.float32]:
    """A column of text as (N, categories), 0 where missing. Raises DataError for an unseen one, if that is wrong."""
    cells = table.columns[name]
    unknown = (~(cells.is_in(categories) | gaps)).arg_true()
    if len(unknown) and unseen == "error":
        raise DataError(
            f"{table.at(unknown[0], name)}: {quoted(cells[unknown[0]])} is a category that does not occur in train, "
            f"which has {quote_names(categories)}. Fix it, or encode it as none: "
            "dataset.handle_unknown=ignore, or for predict --handle-unknown ignore."
        )
    return np.stack([(cells == category).to_numpy() for category in categories], axis=1).astype(np.float32)


def count_unseen(table: Table, encoder: dict[str, Any]) -> int:
    """How many cells hold categories that an encoder does not know; of members the most."""
    if "members" in encoder:
        return max(count_unseen(table, member) for member in encoder["members"])
    words = ["", *encoder["missing_values"]]
    known = zip(encoder["columns"], encoder["categories"], strict=True)
    return sum(
        int((~table.columns[name].is_in([*words, *categories])).sum()) for name, categories in known if categories
    )
