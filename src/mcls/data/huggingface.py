"""Data sets of the library `datasets` of Hugging Face: pictures or a table, in a folder or in its cache."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcls.data.delimited import plain_text
from mcls.data.groups import number_groups
from mcls.data.hub import HubSplit, choose_splits, open_splits
from mcls.data.image_files import ImageTree
from mcls.data.image_folder import ImageKeys, fits_here, image_dataset
from mcls.data.packed_image import PackedColumn, PackedImage
from mcls.data.table_encoder import Table
from mcls.data.tabular import TableKeys, table_dataset
from mcls.data.types import Dataset
from mcls.errors import DataError, RequestError
from mcls.system.text import composed, did_you_mean, natural_order, quote_names, quoted

if TYPE_CHECKING:
    import polars as pl

LABELS = ("label", "labels", "class", "target")  # names of columns that `auto` takes for the classes
CLASSES = re.compile(r"u?int\d+|bool|(large_)?string|string_view")  # types of values that may be classes
NESTED = re.compile(r"[A-Z]\w*|dict|list|tuple|.*binary.*")  # what is not one value per row


def huggingface(
    path: str | None,
    name: str | None,
    download: bool,
    train_split: str,
    val_split: str | None,
    test_split: str | None,
    image_column: str | None,
    target: str,
    group: str | None,
    fits: Callable[[int], bool] = fits_here,
    cache: str | None = None,
    **keys: Any,
) -> Dataset:
    """The data set that `datasets` has in or under `path`; see configs/dataset/huggingface.yaml for the arguments.

    Raises RequestError, DataError, naming split, row and column, and MachineError where it is neither here nor had.
    """
    if not path:
        raise RequestError("dataset.path: must be set to a folder, or the name of a cached data set, dataset.path=DIR.")
    wanted = {"train": train_split, "val": val_split, "test": test_split}
    parts = choose_splits(open_splits(path, name, download), wanted, path)
    for column in keys["drop_columns"]:
        check_column(parts["train"], "drop_columns", column)
    target = choose_target(parts["train"], target, keys["drop_columns"])
    pictures = choose_images(parts["train"], image_column, keys["drop_columns"])
    droppable = pictures is None and keys["missing_values_strategy"] == "drop"
    for part, split in parts.items():
        for key, column in {"target": target, "image_column": pictures, "group": group}.items():
            check_column(split, key, column)
        refuse_unlabelled(part, split, target, droppable)
    if pictures is not None:
        image_keys = ImageKeys(**{key: keys[key] for key in ImageKeys.__dataclass_fields__})
        return image_dataset(
            lambda: packed_tree(parts, pictures, target, group), f"dataset.path: {path}", image_keys, fits, cache
        )
    columns = [column for column in parts["train"].rows.features if column not in keys["drop_columns"]]
    for part, split in parts.items():
        for column in columns:
            check_column(split, f"{part}_split", column)
    tables = {part: split_table(split, columns) for part, split in parts.items()}
    table_keys = TableKeys(**{key: keys[key] for key in TableKeys.__dataclass_fields__} | {"drop_columns": []})
    if keys["folds"] is not None and "val" in tables:  # train and val together are cut into folds
        tables["train"] = stacked_tables(tables["train"], tables.pop("val"))
    feature = parts["train"].rows.features[target]
    classes = tuple(map(composed, feature.names)) if hasattr(feature, "names") else None
    return table_dataset(tables, target, group, table_keys, classes)


def check_column(split: HubSplit, key: str, column: str | None) -> None:
    """Raise DataError unless `split` has the column that `key` names."""
    there = list(split.rows.features)
    if column is not None and column not in there:
        raise DataError(
            f"dataset.{key}: {split.source} has no column {quoted(column)}. {did_you_mean(column, there)}It has "
            f"{quote_names(there)}."
        )
    if key == "group" and column is not None and NESTED.fullmatch(kind := kind_of(split.rows.features[column])):
        raise DataError(f"dataset.group: {split.source}: column {quoted(column)} holds {kind}. Name another column.")


def choose_target(split: HubSplit, asked: str, dropped: Sequence[str] = ()) -> str:
    """The column of the classes; `auto` is none of those that are `dropped`.

    Raises RequestError where that is not plain, DataError for one that has none.
    """
    features = {name: kind for name, kind in split.rows.features.items() if asked != "auto" or name not in dropped}
    known = [name for name in features if hasattr(features[name], "names")] or [n for n in LABELS if n in features]
    if asked == "auto" and len(known) != 1:
        what = f"{len(known)} columns of classes, {quote_names(known)}" if known else "no column of classes"
        there = "" if known else f" It has {quote_names(list(features))}."
        raise RequestError(f"dataset.target: {split.source} has {what}. Name one: dataset.target=COLUMN.{there}")
    target = known[0] if asked == "auto" else asked
    check_column(split, "target", target)
    if not CLASSES.fullmatch(kind := kind_of(features[target])):
        raise DataError(
            f"dataset.target: {split.source}: column {quoted(target)} holds {kind}; classes are text or whole numbers. "
            "Name another column."
        )
    return target


def choose_images(split: HubSplit, asked: str | None, dropped: Sequence[str] = ()) -> str | None:
    """The column of the pictures, `auto` as in `choose_target`; None for a table. Raises RequestError."""
    features = {name: kind for name, kind in split.rows.features.items() if asked != "auto" or name not in dropped}
    known = [name for name in features if type(features[name]).__name__ == "Image" or "bytes" in names_in(split, name)]
    if asked == "auto" and len(known) > 1:
        raise RequestError(
            f"dataset.image_column: {split.source} has the columns of pictures {quote_names(known)}. Name one: "
            f"dataset.image_column={known[0]}."
        )
    if asked != "auto":
        check_column(split, "image_column", asked)
        if asked is not None and asked not in known and "binary" not in kind_of(features[asked]):
            raise RequestError(
                f"dataset.image_column: {split.source}: column {quoted(asked)} holds no pictures. "
                + (f"These do: {quote_names(known)}." if known else "No other does.")
            )
        return asked
    return known[0] if known else None


def kind_of(feature: Any) -> str:
    """The type of a column's values, or the name of what is not one value per row."""
    return str(feature.dtype) if type(feature).__name__ in ("Value", "ClassLabel") else type(feature).__name__


def names_in(split: HubSplit, column: str) -> list[str]:
    """The fields of a column of structs; none of another."""
    kind = split.rows.data.schema.field(column).type
    return [kind.field(index).name for index in range(kind.num_fields)] if str(kind).startswith("struct") else []


def text_cells(split: HubSplit, column: str) -> "pl.Series":
    """A column as text, the names of its classes where it has them; empty where missing. Raises DataError."""
    import polars as pl

    feature = split.rows.features[column]
    cells: Any = pl.from_arrow(split.rows.data.column(column))
    if names := getattr(feature, "names", None):  # a class that is not known is -1, or null
        wrong = ((cells < -1) | (cells >= len(names))).arg_true()
        if len(wrong):
            raise DataError(
                f"{split.at(wrong[0], column)}: class {cells[wrong[0]]} is none of 0..{len(names) - 1} ({len(wrong):,} "
                f"of {len(cells):,} rows). Fix the names of its classes, or the rows."
            )
        known = cells.to_frame().select(pl.when(pl.nth(0) >= 0).then(pl.nth(0))).to_series()
        return pl.Series(column, list(map(composed, names)), dtype=pl.String).gather(known).fill_null("")
    return plain_text(pl.DataFrame({column: cells.cast(pl.String)}))[column]


def refuse_unlabelled(part: str, split: HubSplit, target: str, droppable: bool) -> None:
    """Raise DataError where rows of `split`, which is `part`, have no class, unless they are dropped and some stay."""
    missing = (text_cells(split, target) == "").arg_true()
    if not len(missing) or (droppable and len(missing) < len(split.rows)):
        return
    names = getattr(split.rows.features[target], "names", None)
    filled = f"in range({len(names)})" if names else "not in (None, '')"
    advice = (
        [f"Remove them: data.filter(lambda row: row[{target!r}] {filled})"] if len(missing) < len(split.rows) else []
    )
    advice += [f"{'or l' if advice else 'L'}eave the split out: dataset.{part}_split=null"] if part != "train" else []
    advice = advice or ["Add the classes, or name another column in dataset.target"]
    got = split.rows.data.column(target)[int(missing[0])].as_py()
    raise DataError(
        f"{split.at(missing[0], target)}: no class, got {'null' if got is None else repr(got)} ({len(missing):,} of "
        f"{len(split.rows):,} rows). {', '.join(advice)}."
    )


def flat_columns(split: HubSplit) -> list[str]:
    """The columns of one value per row."""
    features = split.rows.features
    return [name for name in features if not NESTED.fullmatch(kind_of(features[name]))]


def split_table(split: HubSplit, columns: Sequence[str]) -> Table:
    """These columns, each of one value per row, as text. Raises DataError for others."""
    for name in columns:
        if NESTED.fullmatch(kind := kind_of(split.rows.features[name])):
            raise DataError(
                f"{split.source}: column {quoted(name)} holds {kind}, not one value per row. Name it in "
                "dataset.drop_columns."
            )
    cells = {composed(name.strip()): text_cells(split, name) for name in columns}
    return Table(split.source, cells, range(len(split.rows)))


def stacked_tables(first: Table, second: Table) -> Table:
    """The rows of both."""
    columns = {name: first.columns[name].append(second.columns[name]) for name in first.columns}
    return Table(first.source, columns, [*first.rows, *second.rows])


def packed_tree(parts: dict[str, HubSplit], pictures: str, target: str, group: str | None) -> ImageTree:
    """The pictures of all splits, with their classes. Raises DataError for a row without a class."""
    feature = parts["train"].rows.features[target]
    cells = {part: text_cells(split, target).to_list() for part, split in parts.items()}
    named = hasattr(feature, "names")
    classes = list(map(composed, feature.names)) if named else natural_order(set(cells["train"]))
    tree = ImageTree(tuple(classes), [], [], [], {})
    numbers = {name: index for index, name in enumerate(classes)}
    groups, places = list[str](), list[str]()
    for part, split in parts.items():
        for row, label in enumerate(cells[part]):
            if label not in numbers:
                told = f"class {quoted(label)} is not in train, which has {quote_names(classes)}"
                raise DataError(f"{split.at(row, target)}: {told}. Fix the row, or remove it.")
        tree.parts[part] = list(range(len(tree.paths), len(tree.paths) + len(split.rows)))
        tree.paths.extend(picture_paths(split, pictures))
        tree.targets.extend(numbers[label] for label in cells[part])
        tree.names.extend(f"{split.name}[{row}]" for row in range(len(split.rows)))
        if group is not None:
            groups += text_cells(split, group).to_list()
            places += [f"{split.source}[{row}]" for row in range(len(split.rows))]
    return tree if group is None else replace(tree, groups=number_groups(groups, tree.parts, places))


def picture_paths(split: HubSplit, pictures: str) -> list[Path | PackedImage]:
    """Of each row, the picture in it, or the file that it names."""
    import pyarrow.compute

    cells = split.rows.data.column(pictures)
    fields = names_in(split, pictures)
    packed = pyarrow.compute.struct_field(cells, "bytes") if fields else cells
    sizes = pyarrow.compute.binary_length(packed).to_pylist()
    files = pyarrow.compute.struct_field(cells, "path").to_pylist() if "path" in fields else [None] * len(sizes)
    written = [Path(file["filename"]).stat().st_mtime_ns for file in split.rows.cache_files]
    column = PackedColumn(split.source, split.rows, pictures, max(written, default=0))
    return [
        Path(file) if size is None and file else PackedImage(column, row, size or 0)
        for row, (size, file) in enumerate(zip(sizes, files, strict=True))
    ]
