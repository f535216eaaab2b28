"""A picture in a column of a memory-mapped Arrow table, used as the path of a file is."""

import io
import os
import stat
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PackedColumn:
    """A column of pictures.

    Args:
        source: what messages call the split.
        rows: the split, a `datasets.Dataset`, whose table stays on disk.
        name: of the column, which holds bytes, or structs with a field `bytes`.
        modified: time of the last change of the newest file of it, in ns.
    """

    source: str
    rows: Any
    name: str
    modified: int


@dataclass(frozen=True)
class PackedImage:
    """One of its rows; the methods are those of `Path`.

    Args:
        size: in bytes.
    """

    column: PackedColumn
    row: int
    size: int

    def __str__(self) -> str:
        return f"{self.column.source}[{self.row}]"

    def absolute(self) -> "PackedImage":
        """Itself: its text says where it is."""
        return self

    def stat(self) -> os.stat_result:
        """As of a plain file."""
        return os.stat_result(
            (stat.S_IFREG, *[0] * 5, self.size, 0, 0, 0),
            {"st_mtime_ns": self.column.modified},
        )

    def open(self, mode: str = "rb") -> io.BytesIO:
        """The bytes of the picture."""
        cell = self.column.rows.data.column(self.column.name)[self.row]
        return io.BytesIO((cell if hasattr(cell, "as_buffer") else cell["bytes"]).as_buffer())
