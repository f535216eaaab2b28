"""Data sets of the library `datasets` of Hugging Face: pictures or a table, in a folder or in its cache."""

import contextlib
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcls.data.delimited import plain_text
from mcls.data.groups import number_groups
from mcls.data.image_files import ImageTree
from mcls.data.image_folder import ImageKeys, fits_here, image_dataset
from mcls.data.image_tree import SPLITS
from mcls.data.packed_image import PackedColumn, PackedImage
from mcls.data.table_encoder import Table
from mcls.data.tabular import TableKeys, table_dataset
from mcls.data.types import Dataset
from mcls.errors import DataError, MachineError, RequestError
from mcls.system.files import refuse_file
from mcls.system.text import composed, did_you_mean, natural_order, quote_names, quoted

if TYPE_CHECKING:
    import polars as pl

log = logging.getLogger("mcls")

LABELS = ("label", "labels", "class", "target")  # names of columns that `auto` takes for the classes
CLASSES = re.compile(r"u?int\d+|bool|(large_)?string|string_view")  # types of values that may be classes
NESTED = re.compile(r"[A-Z]\w*|dict|list|tuple|.*binary.*")  # what is not one value per row
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)


@dataclass(frozen=True)
class HubSplit:
    """A split.

    Args:
        name: as the data set has it.
        source: what messages call it.
        rows: a `datasets.Dataset`; its table is memory-mapped.
    """

    name: str
    source: str
    rows: Any

    def at(self, row: int, column: str) -> str:
        """Where a cell is, for messages."""
        return f"{self.source}[{row}], column {quoted(column)}"


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
    target = choose_target(parts["train"], target)
    pictures = choose_images(parts["train"], image_column)
    for split in parts.values():
        for key, column in {"target": target, "image_column": pictures, "group": group}.items():
            check_column(split, key, column)
    if pictures is not None:
        image_keys = ImageKeys(**{key: keys[key] for key in ImageKeys.__dataclass_fields__})
        return image_dataset(
            lambda: packed_tree(parts, pictures, target, group), f"dataset.path: {path}", image_keys, fits, cache
        )
    for column in keys["drop_columns"]:
        check_column(parts["train"], "drop_columns", column)
    columns = [column for column in parts["train"].rows.features if column not in keys["drop_columns"]]
    tables = {part: split_table(split, columns) for part, split in parts.items()}
    table_keys = TableKeys(**{key: keys[key] for key in TableKeys.__dataclass_fields__} | {"drop_columns": []})
    if keys["folds"] is not None and "val" in tables:  # train and val together are cut into folds
        tables["train"] = stacked_tables(tables["train"], tables.pop("val"))
    feature = parts["train"].rows.features[target]
    classes = tuple(map(composed, feature.names)) if hasattr(feature, "names") else None
    return table_dataset(tables, target, group, table_keys, classes)


def import_datasets() -> Any:
    """The library, silent. Raises MachineError without it."""
    try:
        import datasets
    except ImportError as error:
        told = "dataset=huggingface: datasets is not installed. Install it: pip install 'mcls[hf]'"
        raise MachineError(told) from error
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # which tells each try of a network that is not there
    return datasets


@contextlib.contextmanager
def offline(datasets: Any) -> Iterator[None]:
    """Keep `datasets` from the network: it takes what is in its cache."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def open_splits(path: str, name: str | None, download: bool) -> dict[str, Any]:
    """The splits in folder `path`, or of the data set of that name, by their names."""
    datasets = import_datasets()
    folder = Path(path)
    if folder.is_dir():
        saved = any((folder / file).is_file() for file in ("dataset_dict.json", "state.json"))
        try:
            found = datasets.load_from_disk(path) if saved else datasets.load_dataset(path, name)
        except Exception as error:  # what its readers raise on damaged files and odd folders is of every kind
            raise DataError(f"dataset.path: {path}: cannot be read ({reason_of(error)}).") from error
    else:
        refuse_file("dataset.path", folder)
        found = load_named(datasets, path, name, download)
    return dict(found) if isinstance(found, datasets.DatasetDict) else {"train": found}


def load_named(datasets: Any, path: str, name: str | None, download: bool) -> Any:
    """The data set called `path` from the cache, else, with `download`, from the network."""
    if not HUB_NAME.fullmatch(path):
        raise DataError(f"dataset.path: {path}: no such folder, and no name of a data set, such as user/data.")
    try:
        with offline(datasets):
            return datasets.load_dataset(path, name)
    except ConnectionError:  # not in the cache
        reason = "dataset.download=false"
    except Exception as error:  # of every kind
        raise RequestError(f"dataset.name: {path}: {reason_of(error)}.") from error
    if download:
        log.info(f"data    {path} is not in {datasets.config.HF_DATASETS_CACHE}; looking for it on the network")
        try:
            return datasets.load_dataset(path, name)
        except Exception as error:  # of every kind
            reason = reason_of(error)
    raise MachineError(
        f"dataset.path: {path} is neither a folder nor in {datasets.config.HF_DATASETS_CACHE} ({reason}). Where there "
        f"is a network: hf download {path} --repo-type dataset --local-dir DIR. Bring DIR, and set dataset.path=DIR."
    )


def reason_of(error: Exception) -> str:
    """What an error of the library says, in one line."""
    if isinstance(error, IndexError) or "corresponds to no data" in str(error):
        return "a split has no row; remove it from the data set"
    return " ".join((str(error) or type(error).__name__).split()).rstrip(".")


def choose_splits(found: dict[str, Any], wanted: dict[str, str | None], path: str) -> dict[str, HubSplit]:
    """The splits that are train, val and test. Raises RequestError for a name that is not there."""
    parts: dict[str, HubSplit] = {}
    for part, asked in wanted.items():
        if asked != "auto":
            name = asked
        elif part == "train" and len(found) == 1:
            name = next(iter(found))
        else:
            name = next((word for word in SPLITS[part] if word in found), "train" if part == "train" else None)
        used = [split.name for split in parts.values()]
        if name is None or (asked == "auto" and name in used):  # the only one, which is train
            continue
        if name not in found:
            raise RequestError(
                f"dataset.{part}_split: {path} has no split {quoted(name)}. It has {quote_names(list(found))}."
            )
        if name in used:
            raise RequestError(f"dataset.{part}_split: {quoted(name)} is another split too. Name each once, or null.")
        parts[part] = HubSplit(name, f"{path}, {name}", found[name])
    if unused := [name for name in found if name not in [split.name for split in parts.values()]]:
        log.info(f"data    {path}: split {quote_names(unused)} not used")
    return parts


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


def choose_target(split: HubSplit, asked: str) -> str:
    """The column of the classes. Raises RequestError where that is not plain, DataError for one that has none."""
    features = split.rows.features
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


def choose_images(split: HubSplit, asked: str | None) -> str | None:
    """The column of the pictures; None for a table. Raises RequestError where that is not plain."""
    features = split.rows.features
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
    if names := getattr(feature, "names", None):
        wrong = (cells.is_null() | (cells < 0) | (cells >= len(names))).arg_true()
        if len(wrong):
            raise DataError(
                f"{split.at(wrong[0], column)}: class {cells[wrong[0]]} is none of 0..{len(names) - 1} ({len(wrong):,} "
                f"of {len(cells):,} rows). Remove them, or leave the split out, as with dataset.test_split=null."
            )
        return pl.Series(column, list(map(composed, names)), dtype=pl.String).gather(cells)
    return plain_text(pl.DataFrame({column: cells.cast(pl.String)}))[column]


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
            if label not in numbers or not label:
                known = f"class {quoted(label)} is not in train, which has {quote_names(classes)}"
                raise DataError(
                    f"{split.at(row, target)}: {known if label else 'no class'}. Fix the row, or remove it."
                )
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
