"""Images listed in a table: one row per image, with its class and optionally its split and group."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from mcls.data.groups import number_groups
from mcls.data.image_files import ImageTree
from mcls.data.image_tree import SPLITS
from mcls.data.packed_image import PackedImage
from mcls.data.table_encoder import Table, read_table
from mcls.errors import DataError
from mcls.system.text import clean, composed, natural_order, quote_names, quoted

AUTO = {"split": "split", "group": "group"}  # what `auto` takes where the table has it
PARTS = {word: part for part, words in SPLITS.items() for word in words}


@dataclass(frozen=True)
class Columns:
    """Names of columns: of the files, the classes, and what `auto` or a name says of the splits and the groups."""

    path: str
    target: str
    split: str | None
    group: str | None

    def optional(self, table: Table, key: str) -> list[str] | None:
        """The cells of the column of `key`, split or group; None without one."""
        name = getattr(self, key)
        if name is None or (name == "auto" and AUTO[key] not in table.columns):
            return None
        return table.column(
            AUTO[key] if name == "auto" else name, "dataset.split_column" if key == "split" else "dataset.group"
        ).to_list()


def read_image_table(path: Path, root: Path, columns: Columns) -> ImageTree:
    """The images that the table in `path` names, in or below `root`.

    Raises DataError, naming the row, for a file that is not there, a cell without content or an unknown split.
    """
    table = read_table(path)
    files = table.column(columns.path, "dataset.path_column").to_list()
    labels = [composed(cell) for cell in table.column(columns.target, "dataset.target").to_list()]
    for column, cells in ((columns.path, files), (columns.target, labels)):
        if "" in cells:
            raise DataError(f"{table.at(cells.index(''), column)}: empty. Complete the row or remove it.")
    if repeated := [name for name, count in Counter(files).items() if count > 1]:
        second = files.index(repeated[0], files.index(repeated[0]) + 1)
        raise DataError(f"{table.at(second, columns.path)}: {quoted(repeated[0])} is in an earlier row too. Keep one.")
    listings: dict[Path, dict[str, list[Path]]] = {}
    paths: list[Path | PackedImage] = [
        file_of(root, name, table.at(row, columns.path), listings) for row, name in enumerate(files)
    ]
    parts = parts_of(table, columns)
    classes = natural_order({labels[row] for row in parts["train"]})
    for row, label in enumerate(labels):
        if label not in classes:
            there = quote_names(classes)
            raise DataError(
                f"{table.at(row, columns.target)}: class {quoted(label)} is not in train, which has {there}."
            )
    label_of = {name: index for index, name in enumerate(classes)}
    groups = groups_of(table, columns, parts)
    return ImageTree(
        tuple(classes), paths, [label_of[label] for label in labels], list(map(clean, files)), parts, groups
    )


def file_of(root: Path, name: str, location: str, listings: dict[Path, dict[str, list[Path]]]) -> Path:
    """The file `name` below `root`, or the one there that is called so but for its suffix. Raises DataError.

    Args:
        listings: of the folders looked into so far, files by their name without suffix.
    """
    path = root / name
    if path.is_file():
        return path
    if path.parent not in listings:
        stems = listings.setdefault(path.parent, {})
        for file in sorted(path.parent.iterdir()) if path.parent.is_dir() else ():
            stems.setdefault(file.stem, []).append(file)
    same = listings[path.parent].get(path.name, [])
    if len(same) == 1:
        return same[0]
    if same:
        raise DataError(
            f"{location}: {quoted(name)} may be {quote_names([file.name for file in same])}. Add the suffix."
        )
    raise DataError(f"{location}: no file {clean(str(path))}. Set dataset.root to the folder that the paths begin in.")


def parts_of(table: Table, columns: Columns) -> dict[str, list[int]]:
    """Rows of each split; all are train without a column of splits. Raises DataError for an unknown name of a split."""
    cells = columns.optional(table, "split")
    if cells is None:
        return {"train": list(range(len(table.rows)))}
    parts: dict[str, list[int]] = {}
    for row, cell in enumerate(cells):
        if cell.lower() not in PARTS:
            name = "split" if columns.split == "auto" else str(columns.split)
            raise DataError(f"{table.at(row, name)}: must be train, val or test, got {quoted(cell)}.")
        parts.setdefault(PARTS[cell.lower()], []).append(row)
    if "train" not in parts:
        raise DataError(f"{table.source}: no row of split train.")
    return parts


def groups_of(table: Table, columns: Columns, parts: dict[str, list[int]]) -> torch.Tensor | None:
    """A number a group of each row; None without a column. Raises DataError for a group in two splits."""
    cells = columns.optional(table, "group")
    if cells is None:
        return None
    return number_groups(cells, parts, [f"{table.source}, row {row}" for row in table.rows])
