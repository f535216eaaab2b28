"""Samples from what a command line names: files, folders, patterns and lists, one at a time, however many there are."""

import csv
import glob
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from mcls import images
from mcls.data.encoding import Table, encode_table, number, separator_of
from mcls.data.names import quoted
from mcls.errors import DataError, RequestError
from mcls.tables import clean

ENCODED = 256  # rows of a table that are encoded at a time
Sample = tuple[str, NDArray[Any]]


def paths(arguments: Iterable[str], suffixes: set[str], listed: IO[bytes]) -> Iterator[str]:
    """The files that `arguments` stand for, by name; those of one folder or pattern are held at a time.

    Args:
        arguments: files, folders (searched for `suffixes`, links to folders not followed), patterns, or `-`.
        listed: holds one path a line, read for `-`.

    Raises RequestError for an argument that is not there.
    """
    for argument in arguments:
        if argument == "-":
            yield from (os.fsdecode(line.rstrip(b"\r\n")) for line in listed if line.strip())
            continue
        matches = [argument]
        if not os.path.lexists(argument):
            matches = sorted(glob.glob(argument, recursive=True))  # noqa: PTH207, Path's takes no absolute pattern
        for path in matches:
            yield from walk(path, suffixes) if Path(path).is_dir() else [path]
        if not matches:
            raise RequestError(f"{clean(argument)}: no such file or folder, and nothing matches it.")


def walk(folder: str, suffixes: set[str]) -> Iterator[str]:
    """The files below `folder` with one of `suffixes`, by name."""
    for place, folders, files in os.walk(folder):
        folders.sort()
        yield from (str(Path(place, name)) for name in sorted(files) if Path(name).suffix.lower() in suffixes)


def pictures(
    found: Iterable[str], shape: Sequence[int], max_pixels: int, refuse: Callable[[DataError], None]
) -> Iterator[Sample]:
    """Path and uint8 (C, H, W) of each picture, in `shape`; `refuse` is called with what is wrong with the others."""
    channels, *size = shape
    for path in found:
        try:
            with warnings.catch_warnings(action="ignore"):  # Pillow's, of files that can be read all the same
                picture = images.fit(images.read(Path(path), channels, max_pixels), size)
        except DataError as error:
            refuse(error)
        else:
            yield path, picture


def records(path: str, delimiter: str = "auto") -> Iterator[tuple[int, list[str]]]:
    """Number and cells of each row of CSV file `path`, in UTF-8; `delimiter` is one of `separator_of`.

    Raises DataError, naming the file and the row.
    """
    number = 0
    if not Path(path).is_file():
        raise DataError(f"{path}: {'not a plain file' if os.path.lexists(path) else 'no such file'}.")
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            first = file.readline(1 << 16)
            file.seek(0)
            for cells in csv.reader(file, delimiter=separator_of(first, delimiter), strict=True):
                number += 1
                if cells:
                    yield number, [cell.strip() for cell in cells]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}, row {number + 1}: cannot be read as CSV ({images.reason(error)}).") from error


def vectors(found: Iterable[str], shape: Sequence[int]) -> Iterator[Sample]:
    """FILE:ROW and float32 of `shape` for each row of CSV files whose columns are the inputs; a header is passed over.

    Raises DataError for a row that has not as many numbers as a sample.
    """
    count = math.prod(shape)
    for path in found:
        for row, cells in records(path):
            values = list(map(number, cells))
            if row == 1 and len(cells) == count and None in values:
                continue
            if len(cells) != count:
                raise DataError(f"{path}, row {row}: {len(cells)} cells, the model takes {count} numbers.")
            if None in values:
                raise DataError(f"{path}, row {row}: {quoted(cells[values.index(None)])} is not a number.")
            yield f"{path}:{row}", np.array(values, dtype=np.float32).reshape(shape)


def opened(path: str, encoder: dict[str, Any]) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The header and the `records` of CSV file `path`, cut as the run's table was, or else as the header suggests."""
    for delimiter in (encoder.get("delimiter", "auto"), "auto"):
        lines = records(path, delimiter)
        try:
            _, header = next(lines, (1, []))
        except DataError:
            if delimiter == "auto":
                raise
            continue
        if set(encoder["columns"]) <= set(header):
            break
    return header, lines


def rows(found: Iterable[str], encoder: dict[str, Any]) -> Iterator[Sample]:
    """FILE:ROW and float32 (F,) for each row of CSV files with a header, as `encoder` makes them.

    Raises DataError for a row that is too short or too long, a missing column and what the encoder does not take.
    """
    for path in found:
        header, lines = opened(path, encoder)
        while batch := list(islice(lines, ENCODED)):
            for row, cells in batch:
                if len(cells) != len(header):
                    raise DataError(f"{path}, row {row}: {len(cells)} cells, the header has {len(header)}.")
            columns = {name: [cells[place] for _, cells in batch] for place, name in enumerate(header)}
            numbers = [row for row, _ in batch]
            inputs = encode_table(Table(path, columns, numbers), encoder)
            yield from ((f"{path}:{row}", values) for row, values in zip(numbers, inputs, strict=True))
