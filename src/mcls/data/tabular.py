"""Data sets from CSV files, and the encoding of new rows as a run's training rows were encoded."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcls.data.delimited import parse_number
from mcls.data.groups import row_groups
from mcls.data.splits import check_classes, materialise, split_train_test, split_train_val, warn_missing_classes
from mcls.data.table_encoder import (
    UNSEEN,
    Table,
    as_numbers,
    count_unseen,
    encode_table,
    fit_encoder,
    missing_cells,
    read_table,
)
from mcls.data.types import Dataset, Split
from mcls.errors import DataError, RequestError
from mcls.system.text import composed, natural_order, plural, quote_names, quoted

log = logging.getLogger("mcls")

LEAST_ROWS = 20  # of which chance says something
HEAD_ROWS = 1000  # that are looked at before all


@dataclass(frozen=True)
class TableKeys:
    """How a table is read and split; see configs/dataset/csv.yaml."""

    drop_columns: Sequence[str]
    categorical_columns: Sequence[str]
    missing_values_strategy: str
    missing_values: Sequence[str]
    handle_unknown: str
    max_categories: int
    test_fraction: float
    test_seed: int
    val_fraction: float
    val_seed: int
    folds: int | None = None
    fold: int | None = None


def csv_file(
    path: str | None,
    target: str | None,
    test_path: str | None,
    delimiter: str,
    group: str | None = None,
    **keys: Any,
) -> Dataset:
    """The table in CSV file `path`, classes in column `target`; see configs/dataset/csv.yaml for the arguments.

    Raises RequestError without a path or a target, DataError, naming file, row and column, for what is wrong in them.
    """
    if path is None:
        raise RequestError("dataset.path: must be set to the CSV file, dataset.path=FILE.")
    if target is None:
        raise RequestError("dataset.target: must be set to the column of the classes, dataset.target=COLUMN.")
    tables = {name: read_table(Path(file), delimiter) for name, file in (("train", path), ("test", test_path)) if file}
    return table_dataset(tables, target, group, TableKeys(**keys))


def table_dataset(
    tables: dict[str, Table], target: str, group: str | None, keys: TableKeys, classes: tuple[str, ...] | None = None
) -> Dataset:
    """The data set of `tables`, train and, where they are not to be split off from it, val and test.

    Args:
        target, group: names of columns.
        classes: in the order of their numbers; None takes those of train, in natural order.
    """
    target = composed(target)
    lists = (keys.drop_columns, keys.categorical_columns, keys.missing_values)
    drop_columns, categorical_columns, missing_values = (list(map(composed, names)) for names in lists)
    own = [] if group is None else [composed(group)]
    columns = input_columns(tables["train"], target, drop_columns, categorical_columns, own)
    for name, table in tables.items():
        for column in columns:
            table.column(column, "dataset.test_path")
        tables[name] = without_gaps(table, target, columns, keys.missing_values_strategy, missing_values)
    warn_index_columns(tables["train"], columns, target)
    classes = class_names(tables["train"], target) if classes is None else classes
    parts = split_rows(tables, target, classes, row_groups(tables, own, missing_values), keys)
    places = torch.as_tensor(parts["train"].inputs).numpy()
    encoder = fit_encoder(tables["train"], places, columns, categorical_columns, missing_values, keys.max_categories)
    encoder |= {"missing": keys.missing_values_strategy, "missing_values": missing_values}
    encoder |= {"unseen": keys.handle_unknown, "target": target}
    encoded = {"train": encode_split(tables["train"], {**encoder, "unseen": "ignore"})}
    encoded |= {name: encode_split(table, encoder) for name, table in tables.items() if name != "train"}
    for name, categories in zip(columns, encoder["categories"], strict=True):
        warn_lookalikes(categories, f"{tables['train'].source}, column {quoted(name)}")
    log_columns(encoder)
    splits = {name: materialise(part, encoded.get(name, encoded["train"])) for name, part in parts.items()}
    warn_missing_classes(classes, splits)
    return Dataset(classes, splits["train"], splits.get("val"), lambda: splits["test"], encoder=encoder)


def split_rows(
    tables: dict[str, Table], target: str, classes: Sequence[str], groups: Tensor | None, keys: TableKeys
) -> dict[str, Split]:
    """Places of rows in place of inputs: of each table, and of the splits that have none, cut off from train's."""
    parts = {name: as_indices(table, target, classes) for name, table in tables.items()}
    if "test" not in parts:
        parts["train"], parts["test"] = split_train_test(parts["train"], keys.test_fraction, keys.test_seed, groups)
    if "val" not in parts:
        groups = groups[torch.as_tensor(parts["train"].inputs)] if groups is not None else None
        cut = keys.val_fraction, keys.val_seed, groups, keys.folds, keys.fold
        parts["train"], val = split_train_val(parts["train"], *cut)
        parts |= {"val": val} if val is not None else {}
    return {name: parts[name] for name in ("train", "val", "test") if name in parts}


def input_columns(
    table: Table, target: str, drop_columns: Sequence[str], categorical_columns: Sequence[str], group: Sequence[str]
) -> list[str]:
    """The columns that are inputs. Raises DataError when a column that is named is not there, or none is left."""
    named = {"target": [target], "drop_columns": drop_columns, "categorical_columns": categorical_columns}
    for key, names in {**named, "group": group}.items():
        for name in names:
            table.column(name, f"dataset.{key}")
    columns = [name for name in table.columns if name not in (target, *group, *drop_columns)]
    if not columns:
        raise DataError(
            f"{table.source}: no columns besides {quote_names([target, *drop_columns])}, so there is nothing to learn."
        )
    return columns


def without_gaps(
    table: Table, target: str, columns: Sequence[str], missing: str, missing_values: Sequence[str]
) -> Table:
    """`table` as `missing` wants it. Raises DataError for missing cells if that is wrong, or when no row is left."""
    unlabelled = missing_cells(table, [target], missing_values)
    if unlabelled and missing != "drop":
        word = table.columns[target][unlabelled[0][0]]
        got = f", got {quoted(word)}" if word else ""
        advice = f" If {quoted(word)} is a class, leave it out of dataset.missing_values." if word else ""
        raise DataError(
            f"{table.at(unlabelled[0][0], target)}: no class{got} ({count_cells(table, unlabelled, 'row')}). "
            f"Fill it in, or set dataset.missing_values_strategy=drop.{advice}"
        )
    gaps = missing_cells(table, columns, missing_values)
    if not gaps + unlabelled:
        return table
    empty = [name for name in columns if table.columns[name].is_in(["", *missing_values]).all()]
    if empty and missing != "mean":
        raise DataError(f"{table.source}: column {quoted(empty[0])} has no value. Name it in dataset.drop_columns.")
    if missing == "error":
        index, name = gaps[0]
        raise DataError(
            f"{table.at(index, name)}: missing, got {quoted(table.columns[name][index])} "
            f"({count_cells(table, gaps, 'cell')}). "
            "Set dataset.missing_values_strategy to drop or mean, or name the column in dataset.drop_columns."
        )
    counted = count_cells(table, gaps + unlabelled, "cell")
    if missing == "mean":
        log.info(f"data    {table.source}: missing, {counted}; replaced by the mean, or no category")
        return table
    holes = {index for index, _ in gaps + unlabelled}
    if len(holes) == len(table.rows):
        raise DataError(
            f"{table.source}: every row has a missing cell, so none is left. Set dataset.missing_values_strategy=mean."
        )
    without = f" ({len(unlabelled):,} without a class)" if unlabelled else ""
    told = f"{len(holes):,} of {plural(len(table.rows), 'row')} dropped{without}, they have missing cells: {counted}"
    log.info(f"data    {table.source}: {told}")
    return table.take([index for index in range(len(table.rows)) if index not in holes])


def count_cells(table: Table, gaps: Sequence[tuple[int, str]], what: str) -> str:
    """How many missing cells there are, and of each word if there are several."""
    counts = Counter(table.columns[name][index] for index, name in gaps)
    words = (
        ": " + ", ".join(f"{count:,} {quoted(word)}" for word, count in counts.most_common()) if len(counts) > 1 else ""
    )
    return f"{plural(len(gaps), f'such {what}')}{words}"


def warn_index_columns(table: Table, columns: Sequence[str], target: str) -> None:
    """Warn of columns that number the rows and in whose order the classes come: a row's number gives its class away.

    Numbers of rows are whole, all different, and go little further than there are rows. In their order the class
    changes from row to row not half as often as by chance.
    """
    labels, size = table.columns[target].to_list(), len(table.rows)
    by_chance = size - sum(count * count for count in Counter(labels).values()) / size
    for name in columns:
        begin = table.columns[name].head(HEAD_ROWS)  # most columns are seen there not to number rows
        if size < LEAST_ROWS or begin.n_unique() < len(begin) or table.columns[name].n_unique() < size:
            continue
        numbers = as_numbers(table.columns[name])
        values = numbers.to_numpy()
        if numbers.has_nulls() or (values % 1).any() or values.max() - values.min() >= 2 * size:
            continue
        order = values.argsort().tolist()
        if 2 * sum(labels[before] != labels[after] for before, after in pairwise(order)) < by_chance:
            log.warning(
                f"data    {table.source}: column {quoted(name)} numbers the rows, and the classes are in its "
                "order: a leak. Name it in dataset.drop_columns."
            )
        else:
            told = "numbers the rows; if it is no input, name it in dataset.drop_columns"
            log.info(f"data    {table.source}: column {quoted(name)} {told}")


def warn_lookalikes(names: Sequence[str], source: str) -> None:
    """Warn of `names` that differ in capitals, in blanks or in how a number is written alone."""
    alike: dict[float | str, list[str]] = {}
    for name in names:
        value = parse_number(name)
        alike.setdefault(" ".join(name.casefold().split()) if value is None else value, []).append(name)
    for group in alike.values():
        if len(group) > 1:
            log.warning(
                f"data    {source}: {quote_names(group)} are different classes. If they are the same, use one spelling."
            )


def class_names(table: Table, target: str) -> tuple[str, ...]:
    """The classes, in natural order. Raises DataError when there is one alone, or nearly as many as rows."""
    labels = table.columns[target]
    classes = tuple(natural_order(labels.unique().to_list()))
    source = f"{table.source}, column {quoted(target)}"
    check_classes(classes, source)
    warn_lookalikes(classes, source)
    if 2 * len(classes) > len(labels):
        raise DataError(
            f"{table.source}: column {quoted(target)} has {len(classes)} different values in {len(labels)} rows; "
            "too many for classes. Name another column in dataset.target."
        )
    return classes


def as_indices(table: Table, target: str, classes: Sequence[str]) -> Split:
    """The rows' places (int64, in place of inputs), class numbers and names. Raises DataError for a class unknown."""
    places = {name: index for index, name in enumerate(classes)}
    labels = table.columns[target]
    if len(unknown := (~labels.is_in(classes)).arg_true()):
        raise DataError(
            f"{table.at(unknown[0], target)}: class {quoted(labels[unknown[0]])} is not in train, which has "
            f"{quote_names(classes)}."
        )
    names = tuple(f"row {row}" for row in table.rows)
    return Split(torch.arange(len(labels)), torch.tensor([places[label] for label in labels]), names)


def encode_split(table: Table, encoder: dict[str, Any]) -> Tensor:
    """`encode_table`; categories that are ignored are counted and told."""
    inputs = torch.from_numpy(encode_table(table, encoder))
    if unseen := count_unseen(table, encoder):
        log.warning(f"data    {table.source}: {plural(unseen, 'cell')} {UNSEEN}")
    return inputs


def log_columns(encoder: dict[str, Any]) -> None:
    """Log how the columns are used."""
    texts = [len(categories) for categories in encoder["categories"] if categories]
    numbers = len(encoder["columns"]) - len(texts)
    categories = f", {len(texts)} of text as {plural(sum(texts), 'category')}" if texts else ""
    log.info(f"columns {numbers} numeric, standardised{categories}")
