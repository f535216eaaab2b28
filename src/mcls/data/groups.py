"""Groups of samples that belong together, such as one patient's: no split and no fold parts them."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mcls.data.table_encoder import Table, missing_cells
from mcls.errors import DataError
from mcls.system.text import clean, plural, quoted


def group_name(path: Path, folder: Path, level: int) -> str:
    """The folders `level` deep that `path` is in, below its class's `folder`. Raises DataError where it is in fewer."""
    inside = path.relative_to(folder).parts[:-1]
    if len(inside) < level:
        raise DataError(
            f"{clean(str(path))}: in {plural(len(inside), 'folder')} below its class, fewer than "
            f"dataset.group={level}. Move it."
        )
    return "/".join(inside[:level])


def number_groups(cells: Sequence[str], parts: dict[str, list[int]], places: Sequence[str]) -> Tensor:
    """A number for the group in each of `cells`. Raises DataError, naming the place, for a group in two splits."""
    seen: dict[str, str] = {}
    for part, rows in parts.items():
        for row in rows:
            if (other := seen.setdefault(cells[row], part)) != part:
                raise DataError(
                    f"{places[row]}: group {quoted(cells[row])} is in {other} and in {part}. Put it in one split."
                )
    numbers = {name: index for index, name in enumerate(seen)}
    return torch.tensor([numbers[cell] for cell in cells])


def row_groups(tables: dict[str, Table], columns: Sequence[str], missing_values: Sequence[str]) -> Tensor | None:
    """A number per group of each row of train, by the one of `columns` that says it; None without one.

    Raises DataError for a row without a group, and for one that is in another table too.
    """
    if not columns:
        return None
    table, (group,) = tables["train"], columns
    if gaps := missing_cells(table, [group], missing_values):
        raise DataError(f"{table.at(gaps[0][0], group)}: no group. Fill it in, or remove the row.")
    numbers = {name: index for index, name in enumerate(table.columns[group].unique(maintain_order=True))}
    for other in (tables[name] for name in tables if name != "train" and group in tables[name].columns):
        cells = other.columns[group].to_list()
        if both := [row for row, name in enumerate(cells) if name in numbers]:
            location = other.at(both[0], group)
            raise DataError(
                f"{location}: {quoted(cells[both[0]])} is in {table.source} too. Put each group in one file."
            )
    return torch.tensor([numbers[name] for name in table.columns[group].to_list()])
